package chunker

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// sha256Key names the list of SHA-256s in the metainfo. Keys are in
// alphabetical order (BEP 3).
const sha256Key = "qs-piece-sha256"

// rootDomain begins what a piece root is the hash of.
const rootDomain = "qs-piece-root-v1\x00"

// newTorrent encodes what has been validated.
func newTorrent(name string, size int64, sha1s, sha256s []byte) *Torrent {
	t := &Torrent{name: name, size: size, pieceLength: PieceLength(size)}
	b := make([]byte, 0, len(name)+len(sha1s)+len(sha256s)+160)
	b = append(b, "d4:info"...)
	infoAt := len(b)
	b = append(b, "d6:lengthi"...)
	b = strconv.AppendInt(b, size, 10)
	b = append(b, "e4:name"...)
	b = appendString(b, name)
	b = append(b, "12:piece lengthi"...)
	b = strconv.AppendInt(b, t.pieceLength, 10)
	b = append(b, "e6:pieces"...)
	b = appendString(b, sha1s)
	sha1sEnd := len(b)
	b = append(b, 'e')
	infoEnd := len(b)
	b = appendString(b, sha256Key)
	b = appendString(b, sha256s)
	sha256sEnd := len(b)
	b = append(b, 'e')

	t.metainfo = b
	t.info = b[infoAt:infoEnd:infoEnd]
	t.sha1s = b[sha1sEnd-len(sha1s) : sha1sEnd : sha1sEnd]
	t.sha256s = b[sha256sEnd-len(sha256s) : sha256sEnd : sha256sEnd]
	t.infoHash = sha1.Sum(t.info)
	t.root = pieceRoot(size, t.pieceLength, t.sha256s)
	return t
}

func appendString[S []byte | string](b []byte, s S) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	b = append(b, ':')
	return append(b, s...)
}

func pieceRoot(size, pieceLength int64, sha256s []byte) (root [sha256.Size]byte) {
	h := sha256.New()
	head := append(make([]byte, 0, len(rootDomain)+16), rootDomain...)
	head = binary.BigEndian.AppendUint64(head, uint64(size))
	head = binary.BigEndian.AppendUint64(head, uint64(pieceLength))
	h.Write(head)
	h.Write(sha256s)
	h.Sum(root[:0])
	return root
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
	sha1s := d.str()
	d.expect("e")
	if d.err == nil && bytes.HasPrefix(d.in[d.pos:], []byte("e")) {
		d.fail("no %q: without the SHA-256 of each piece the file can not be verified; another program made this torrent, or an old version", sha256Key)
	}
	d.key(sha256Key)
	sha256s := d.str()
	d.expect("e")
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
	n := pieceCount(size)
	if want := n * sha1.Size; int64(len(sha1s)) != want {
		return nil, fmt.Errorf("%d bytes of SHA-1s: want %d for %d pieces", len(sha1s), want, n)
	}
	if want := n * sha256.Size; int64(len(sha256s)) != want {
		return nil, fmt.Errorf("%d bytes of SHA-256s: want %d for %d pieces", len(sha256s), want, n)
	}
	// The infohash is over the exact bytes, so they must be the ones that
	// everybody else would write.
	t := newTorrent(string(name), size, sha1s, sha256s)
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
