package snapshot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// MaxManifest is the length of the longest text that ParseManifest looks at, in
// bytes.
const MaxManifest = 4 << 10

const manifestMagic = "qs-snapshot-v1"

// Manifest is what is known about a snapshot.
type Manifest struct {
	Dataset     txlog.DatasetID
	Pos         txlog.Pos
	Time        time.Time // the writer's clock in the entry at Pos
	Format      int       // lmdbstore.Format
	Pairs       uint64    // of the user
	Size        int64     // of the file, in bytes
	SHA256      [32]byte  // of the file
	InfoHash    chunker.InfoHash
	PieceLength int64 // in bytes
	// PieceRoot binds the SHA-256 of every piece (chunker.Torrent.PieceRoot):
	// by it pieces are verified as they arrive.
	PieceRoot [32]byte
}

// Encode returns the manifest's text.
func (m *Manifest) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, manifestMagic)
	fmt.Fprintln(&b, "dataset", m.Dataset)
	fmt.Fprintln(&b, "pos", m.Pos)
	fmt.Fprintln(&b, "time", m.Time.UTC().Format(time.RFC3339Nano))
	fmt.Fprintln(&b, "format", m.Format)
	fmt.Fprintln(&b, "pairs", m.Pairs)
	fmt.Fprintln(&b, "size", m.Size)
	fmt.Fprintln(&b, "sha256", hex.EncodeToString(m.SHA256[:]))
	fmt.Fprintln(&b, "infohash", m.InfoHash)
	fmt.Fprintln(&b, "piece-length", m.PieceLength)
	fmt.Fprintln(&b, "piece-root", hex.EncodeToString(m.PieceRoot[:]))
	return b.Bytes()
}

// ParseManifest is the inverse of Encode, and accepts nothing else. The format
// may be one that this version cannot open (lmdbstore says so), but the text is
// always of version 1.
func ParseManifest(text []byte) (*Manifest, error) {
	if len(text) > MaxManifest {
		return nil, fmt.Errorf("manifest is %d bytes long; at most %d are allowed", len(text), MaxManifest)
	}
	lines := strings.Split(string(text), "\n")
	if lines[0] != manifestMagic {
		return nil, fmt.Errorf("manifest begins with %q; this version reads %q", clip(lines[0]), manifestMagic)
	}
	p := fields{lines: lines[1:], n: 1}
	m := &Manifest{
		Dataset:     parse(&p, "dataset", txlog.ParseDatasetID),
		Pos:         parse(&p, "pos", txlog.ParsePos),
		Time:        parse(&p, "time", parseTime),
		Format:      int(parse(&p, "format", parsePositive)),
		Pairs:       parse(&p, "pairs", parseUint),
		Size:        parse(&p, "size", parsePositive),
		SHA256:      parse(&p, "sha256", parseSHA256),
		InfoHash:    parse(&p, "infohash", chunker.ParseInfoHash),
		PieceLength: parse(&p, "piece-length", parsePositive),
		PieceRoot:   parse(&p, "piece-root", parseSHA256),
	}
	switch {
	case p.err != nil:
		return nil, p.err
	case m.Dataset.IsZero():
		return nil, errors.New("manifest names no dataset")
	case m.Pos.Seq == 0 || m.Pos.Hash.IsZero():
		return nil, fmt.Errorf("manifest is of position %v, where there is nothing", m.Pos)
	case m.InfoHash.IsZero():
		return nil, errors.New("manifest names no infohash")
	case m.PieceLength&(m.PieceLength-1) != 0:
		return nil, fmt.Errorf("manifest: piece length %d is not a power of two", m.PieceLength)
	case !bytes.Equal(m.Encode(), text):
		return nil, errors.New("manifest is not in its canonical form (spaces, upper-case digits, leading zeros, or lines too many)")
	}
	return m, nil
}

// ParseNote reads the manifest in a note, whoever signed it, or in a bare text.
func ParseNote(note []byte) (*Manifest, error) {
	text, err := signing.Text(note)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return ParseManifest(text)
}

// Expected returns what the file has to be, in the store's words.
func (m *Manifest) Expected() *lmdbstore.Expected {
	return &lmdbstore.Expected{SHA256: m.SHA256, SnapshotInfo: lmdbstore.SnapshotInfo{
		State: lmdbstore.State{Dataset: m.Dataset, Pos: m.Pos, Time: m.Time}, Pairs: m.Pairs, Size: m.Size, Format: m.Format,
	}}
}

// Matches says whether t is the metainfo of m's file: an error tells the first
// thing in which they disagree.
func (m *Manifest) Matches(t *chunker.Torrent) error {
	switch want := Name(m.Pos) + dataExt; {
	case t.InfoHash() != m.InfoHash:
		return fmt.Errorf("the torrent's infohash is %v, the manifest's %v", t.InfoHash(), m.InfoHash)
	case t.Size() != m.Size:
		return fmt.Errorf("the torrent's file is %d bytes long, the manifest's %d", t.Size(), m.Size)
	case t.PieceLength() != m.PieceLength:
		return fmt.Errorf("the torrent's pieces are %d bytes long, the manifest's %d", t.PieceLength(), m.PieceLength)
	case t.PieceRoot() != m.PieceRoot:
		return fmt.Errorf("the torrent's list of SHA-256s has the root %x, the manifest's is %x", t.PieceRoot(), m.PieceRoot)
	case t.Name() != want:
		return fmt.Errorf("the torrent's file is called %q, the manifest's %q", clip(t.Name()), want)
	}
	return nil
}

// newManifest binds what the store says of a minted file to what was hashed.
func newManifest(info lmdbstore.SnapshotInfo, t *chunker.Torrent, sum [32]byte) Manifest {
	return Manifest{
		Dataset: info.Dataset, Pos: info.Pos, Time: info.Time.UTC(), Format: info.Format, Pairs: info.Pairs,
		Size: info.Size, SHA256: sum, InfoHash: t.InfoHash(), PieceLength: t.PieceLength(), PieceRoot: t.PieceRoot(),
	}
}

// fields reads "name value" lines in a fixed order; the first error sticks.
type fields struct {
	lines []string
	n     int // lines read
	err   error
}

func parse[T any](p *fields, name string, value func(string) (T, error)) (v T) {
	if p.err != nil {
		return v
	}
	p.n++
	if len(p.lines) == 0 {
		p.err = fmt.Errorf("manifest ends before line %d (%s)", p.n, name)
		return v
	}
	line := p.lines[0]
	p.lines = p.lines[1:]
	got, text, _ := strings.Cut(line, " ")
	if got != name {
		p.err = fmt.Errorf("manifest line %d is %q; want %q and a value", p.n, clip(line), name)
		return v
	}
	v, err := value(text)
	if err != nil {
		p.err = fmt.Errorf("manifest line %d (%s): %w", p.n, name, err)
	}
	return v
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	return t.UTC(), err
}

func parseUint(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

func parsePositive(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n < 1 {
		err = fmt.Errorf("%d is less than 1", n)
	}
	return n, err
}

func parseSHA256(s string) (sum [32]byte, err error) {
	if len(s) != 2*len(sum) {
		return sum, fmt.Errorf("want %d hexadecimal digits, got %d characters", 2*len(sum), len(s))
	}
	_, err = hex.Decode(sum[:], []byte(s))
	return sum, err
}

// clip shortens text that a stranger wrote for an error message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
