package chunker

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// newTorrent encodes what has been validated.
func newTorrent(name string, size int64, hashes []byte) *Torrent {
	t := &Torrent{name: name, size: size, pieceLength: PieceLength(size)}
	b := make([]byte, 0, len(hashes)+len(name)+128)
	b = append(b, "d4:info"...)
	infoAt := len(b)
	b = append(b, "d6:lengthi"...)
	b = strconv.AppendInt(b, size, 10)
	b = append(b, "e4:name"...)
	b = strconv.AppendInt(b, int64(len(name)), 10)
	b = append(b, ':')
	b = append(b, name...)
	b = append(b, "12:piece lengthi"...)
	b = strconv.AppendInt(b, t.pieceLength, 10)
	b = append(b, "e6:pieces"...)
	b = strconv.AppendInt(b, int64(len(hashes)), 10)
	b = append(b, ':')
	hashesAt := len(b)
	b = append(b, hashes...)
	b = append(b, "ee"...)

	t.metainfo = b
	t.info = b[infoAt : len(b)-1 : len(b)-1]
	t.hashes = b[hashesAt : len(b)-2 : len(b)-2]
	t.infoHash = sha1.Sum(t.info)
	return t
}

// pieceCount returns how many pieces a file of size bytes has.
func pieceCount(size int64) int64 { return (size-1)/PieceLength(size) + 1 }

// checkSize and checkName say what a torrent may describe.
func checkSize(size int64) error {
	if size < 1 || size > MaxSize {
		return fmt.Errorf("file size %d is out of bounds: want 1 to %d bytes", size, int64(MaxSize))
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("file name is %d bytes long: want 1 to %d", len(name), MaxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("file name %q is not valid UTF-8", name)
	case name == "." || name == ".." || strings.ContainsAny(name, `/\`):
		return fmt.Errorf("file name %q is not one path element", name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("file name %q holds control characters", name)
	}
	return nil
}

// Parse reads a .torrent file that Metainfo made: single file, v1, and of the
// canonical form. Anything else, and anything over the limits (16 MiB of
// metainfo), is an error that says what was wrong. It keeps no reference to
// metainfo.
func Parse(metainfo []byte) (*Torrent, error) {
	t, err := parse(metainfo)
	if err != nil {
		return nil, fmt.Errorf("parse torrent: %w", err)
	}
	return t, nil
}

func parse(metainfo []byte) (*Torrent, error) {
	if len(metainfo) > MaxMetainfo {
		return nil, fmt.Errorf("metainfo is %d bytes long: at most %d are allowed", len(metainfo), MaxMetainfo)
	}
	d := decoder{in: metainfo}
	d.expect("d")
	d.key("info")
	d.expect("d")
	d.key("length")
	size := d.integer()
	d.key("name")
	name := d.str()
	d.key("piece length")
	pieceLength := d.integer()
	d.key("pieces")
	hashes := d.str()
	d.expect("ee")
	d.end()
	if d.err != nil {
		return nil, d.err
	}

	if err := checkSize(size); err != nil {
		return nil, err
	}
	if err := checkName(string(name)); err != nil {
		return nil, err
	}
	if want := PieceLength(size); pieceLength != want {
		return nil, fmt.Errorf("piece length is %d bytes: want %d for a file of %d bytes", pieceLength, want, size)
	}
	if want := pieceCount(size); int64(len(hashes)) != want*hashSize {
		return nil, fmt.Errorf("%d bytes of piece hashes: want %d for %d pieces", len(hashes), want*hashSize, want)
	}
	// The infohash is over the exact bytes, so they must be the ones that
	// everybody else would write.
	t := newTorrent(string(name), size, hashes)
	if !bytes.Equal(t.metainfo, metainfo) {
		return nil, errors.New("not canonical: the same values encode to other bytes")
	}
	return t, nil
}

// foreign explains the keys of torrents that this package does not make.
var foreign = map[string]string{
	"files":        "it describes several files",
	"file tree":    "it is a BitTorrent v2 or hybrid torrent",
	"meta version": "it is a BitTorrent v2 or hybrid torrent",
	"announce":     "it names a tracker",
	"private":      "it carries a private flag",
}

// decoder walks over bencoded input. After an error it stands still.
type decoder struct {
	in  []byte
	pos int
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("at offset %d: %w", d.pos, fmt.Errorf(format, args...))
	}
}

func (d *decoder) expect(literal string) {
	if d.err != nil {
		return
	}
	if !bytes.HasPrefix(d.in[d.pos:], []byte(literal)) {
		d.fail("want %q, got %q", literal, d.in[d.pos:min(len(d.in), d.pos+len(literal))])
		return
	}
	d.pos += len(literal)
}

func (d *decoder) key(want string) {
	at := d.pos
	got := string(d.str())
	if d.err != nil || got == want {
		return
	}
	d.pos = at
	if why, ok := foreign[got]; ok {
		d.fail("want key %q, got %q: %s", want, got, why)
	} else {
		d.fail("want key %q, got %.40q", want, got)
	}
}

// until returns the bytes before the next delimiter, at most 20 (a number).
func (d *decoder) until(delimiter byte) string {
	window := d.in[d.pos:min(len(d.in), d.pos+21)]
	n := bytes.IndexByte(window, delimiter)
	if n < 0 {
		d.fail("want a number and %q, got %q", delimiter, window)
		return ""
	}
	d.pos += n + 1
	return string(window[:n])
}

func (d *decoder) integer() int64 {
	d.expect("i")
	if d.err != nil {
		return 0
	}
	digits := d.until('e')
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		d.fail("integer %q: %w", digits, errors.Unwrap(err))
	}
	return n
}

func (d *decoder) str() []byte {
	if d.err != nil {
		return nil
	}
	digits := d.until(':')
	if d.err != nil {
		return nil
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil {
		d.fail("string length %q: %w", digits, errors.Unwrap(err))
		return nil
	}
	if left := len(d.in) - d.pos; uint64(left) < n {
		d.fail("string of %d bytes, but only %d are left", n, left)
		return nil
	}
	s := d.in[d.pos : d.pos+int(n)]
	d.pos += int(n)
	return s
}

func (d *decoder) end() {
	if d.err == nil && d.pos != len(d.in) {
		d.fail("%d bytes after the end", len(d.in)-d.pos)
	}
}
