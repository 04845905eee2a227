package heads

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// MaxNote is the length of the longest signed head that is looked at, in bytes.
// One with a signature has about 300.
const MaxNote = 4 << 10

// The first line of a head, and of one that says what was applied.
const (
	magic        = "qs-peer head v1"
	magicApplied = "qs-peer head v2"
)

// Head is what a signed head says: at Time the log of Dataset was durable up to
// Pos, and the pairs that it made up to Applied had this Digest.
type Head struct {
	Dataset txlog.DatasetID
	Pos     txlog.Pos
	Time    time.Time // the writer's clock, UTC
	// Applied is at or before Pos, and zero when nothing is said of the pairs: in
	// a head of version 1, such as of entries that were applied long ago.
	Applied txlog.Pos
	Digest  [32]byte
}

// Encode returns the text that is signed.
func (h Head) Encode() []byte {
	first := magic
	if !h.Applied.IsZero() {
		first = magicApplied
	}
	b := fmt.Appendf(nil, "%s\ndataset %s\npos %s\ntime %s\n", first, h.Dataset, h.Pos, h.Time.UTC().Format(time.RFC3339Nano))
	if !h.Applied.IsZero() {
		b = fmt.Appendf(b, "applied %s %x\n", h.Applied, h.Digest)
	}
	return b
}

// Parse is the inverse of Encode, and accepts nothing else.
func Parse(text []byte) (Head, error) {
	if len(text) > MaxNote {
		return Head{}, fmt.Errorf("head is %d bytes long; at most %d are allowed", len(text), MaxNote)
	}
	lines := strings.Split(string(text), "\n")
	if lines[0] != magic && lines[0] != magicApplied {
		return Head{}, fmt.Errorf("head begins with %.64q; this version reads %q and %q", lines[0], magic, magicApplied)
	}
	var h Head
	var err error
	fields := []struct {
		name  string
		parse func(string) error
	}{
		{"dataset", func(s string) (err error) { h.Dataset, err = txlog.ParseDatasetID(s); return err }},
		{"pos", func(s string) (err error) { h.Pos, err = txlog.ParsePos(s); return err }},
		{"time", func(s string) (err error) { h.Time, err = time.Parse(time.RFC3339Nano, s); return err }},
		{"applied", h.parseApplied},
	}
	if lines[0] == magic {
		fields = fields[:len(fields)-1]
	}
	for i, field := range fields {
		if i+1 >= len(lines) {
			return Head{}, fmt.Errorf("head ends before line %d (%s)", i+2, field.name)
		}
		name, value, _ := strings.Cut(lines[i+1], " ")
		if name != field.name {
			return Head{}, fmt.Errorf("head line %d is %.64q; want %q and a value", i+2, lines[i+1], field.name)
		}
		if err = field.parse(value); err != nil {
			return Head{}, fmt.Errorf("head line %d (%s): %w", i+2, name, err)
		}
	}
	h.Time = h.Time.UTC()
	switch {
	case h.Dataset.IsZero():
		return Head{}, errors.New("head names no dataset")
	case h.Pos.Seq == 0 || h.Pos.Hash.IsZero():
		return Head{}, fmt.Errorf("head is of position %v, where there is nothing", h.Pos)
	case h.Applied.Seq > h.Pos.Seq || h.Applied.Seq == h.Pos.Seq && h.Applied != h.Pos:
		return Head{}, fmt.Errorf("head says that %v was applied of a log that ends at %v", h.Applied, h.Pos)
	case !bytes.Equal(h.Encode(), text):
		return Head{}, errors.New("head is not in its canonical form (spaces, upper-case digits, leading zeros, or lines too many)")
	}
	return h, nil
}

func (h *Head) parseApplied(s string) (err error) {
	pos, digest, _ := strings.Cut(s, " ")
	if len(digest) != hex.EncodedLen(len(h.Digest)) {
		return fmt.Errorf("the digest has %d characters; want %d", len(digest), hex.EncodedLen(len(h.Digest)))
	}
	if h.Applied, err = txlog.ParsePos(pos); err != nil {
		return err
	}
	if h.Applied.Seq == 0 || h.Applied.Hash.IsZero() {
		return fmt.Errorf("position %v, where there is nothing", h.Applied)
	}
	_, err = hex.Decode(h.Digest[:], []byte(digest))
	return err
}

// Signed is a head and the note that proves it. The zero value is none.
type Signed struct {
	Head
	Note []byte
}

// read returns what a note says, without asking who signed it.
func read(note []byte) (Signed, error) {
	if len(note) > MaxNote {
		return Signed{}, fmt.Errorf("signed head is %d bytes long; at most %d are allowed", len(note), MaxNote)
	}
	text, err := signing.Text(note)
	if err != nil {
		return Signed{}, err
	}
	h, err := Parse(text)
	return Signed{h, note}, err
}

// verify returns what a note says that a trusted key signed, and the note without
// the signatures that prove nothing. An error is a *FaultError.
func verify(t *signing.Trusted, note []byte, dataset txlog.DatasetID) (Signed, error) {
	if len(note) > MaxNote {
		return Signed{}, faultf(Malformed, "a signed head of %d bytes; at most %d are allowed", len(note), MaxNote)
	}
	note, _, err := t.Combine(note)
	if err != nil {
		return Signed{}, &FaultError{Reason(signing.ReasonOf(err)), fmt.Errorf("signed head: %w", err)}
	}
	h, err := read(note)
	switch {
	case err != nil:
		return Signed{}, &FaultError{Malformed, err}
	case !dataset.IsZero() && h.Dataset != dataset:
		return Signed{}, faultf(WrongDataset, "a signed head of dataset %s, on a stream of %s", h.Dataset, dataset)
	}
	return h, nil
}
