package heads

import (
	"bytes"
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

const magic = "qs-peer head v1"

// Head is what a signed head says: at Time the log of Dataset was durable up to
// Pos.
type Head struct {
	Dataset txlog.DatasetID
	Pos     txlog.Pos
	Time    time.Time // the writer's clock, UTC
}

// Encode returns the text that is signed.
func (h Head) Encode() []byte {
	return fmt.Appendf(nil, "%s\ndataset %s\npos %s\ntime %s\n", magic, h.Dataset, h.Pos, h.Time.UTC().Format(time.RFC3339Nano))
}

// Parse is the inverse of Encode, and accepts nothing else.
func Parse(text []byte) (Head, error) {
	if len(text) > MaxNote {
		return Head{}, fmt.Errorf("head is %d bytes long; at most %d are allowed", len(text), MaxNote)
	}
	lines := strings.Split(string(text), "\n")
	if lines[0] != magic {
		return Head{}, fmt.Errorf("head begins with %.64q; this version reads %q", lines[0], magic)
	}
	var h Head
	var err error
	for i, field := range []struct {
		name  string
		parse func(string) error
	}{
		{"dataset", func(s string) (err error) { h.Dataset, err = txlog.ParseDatasetID(s); return err }},
		{"pos", func(s string) (err error) { h.Pos, err = txlog.ParsePos(s); return err }},
		{"time", func(s string) (err error) { h.Time, err = time.Parse(time.RFC3339Nano, s); return err }},
	} {
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
	case !bytes.Equal(h.Encode(), text):
		return Head{}, errors.New("head is not in its canonical form (spaces, upper-case digits, leading zeros, or lines too many)")
	}
	return h, nil
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
