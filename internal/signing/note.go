package signing

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

const (
	// MaxNote is the length of the longest signed note that is looked at, in bytes.
	MaxNote = 16 << 10
	// MaxSignatures is how many signatures a note may carry.
	MaxSignatures = 32
)

// Reason is why a note was refused, in a word for a metric's label.
type Reason string

const (
	Malformed    Reason = "malformed"          // not a note, or over a limit
	Unsigned     Reason = "unsigned"           // a text without any signature
	UnknownKey   Reason = "unknown_key"        // nobody who is trusted signed it
	BadSignature Reason = "bad_signature"      // a trusted key's signature is of another text
	TooFew       Reason = "too_few_signatures" // fewer trusted keys than required signed it
	Differs      Reason = "different_texts"    // Merge of notes that do not say the same
)

// RefusedError says why a note was not opened.
type RefusedError struct {
	Reason Reason
	By     []string // the names of those whose signatures are good
	detail string
}

func (e *RefusedError) Error() string { return e.detail }

// ReasonOf returns why a note was refused, empty if err is of another kind.
func ReasonOf(err error) Reason {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.Reason
	}
	return ""
}

func refuse(reason Reason, format string, args ...any) error {
	return &RefusedError{Reason: reason, detail: fmt.Sprintf(format, args...)}
}

// split parses a note without believing any signature.
func split(msg []byte) (text string, sigs []note.Signature, err error) {
	switch {
	case len(msg) > MaxNote:
		return "", nil, refuse(Malformed, "the note is %d bytes long; at most %d are allowed", len(msg), MaxNote)
	case !bytes.Contains(msg, []byte("\n\n")):
		return "", nil, refuse(Unsigned, "it is not signed")
	case bytes.Count(msg, []byte("\n— ")) > MaxSignatures:
		return "", nil, refuse(Malformed, "the note has more than %d signatures", MaxSignatures)
	}
	_, err = note.Open(msg, nil)
	unverified, ok := errors.AsType[*note.UnverifiedNoteError](err)
	if !ok {
		return "", nil, refuse(Malformed, "it is no signed note: it has to end in an empty line and lines of signatures")
	}
	return unverified.Note.Text, unverified.Note.UnverifiedSigs, nil
}

// join is the inverse of split.
func join(text string, sigs []note.Signature) ([]byte, error) {
	if len(sigs) > MaxSignatures {
		return nil, refuse(Malformed, "%d signatures; a note may have %d", len(sigs), MaxSignatures)
	}
	msg, err := note.Sign(&note.Note{Text: text, UnverifiedSigs: sigs})
	if err == nil && len(msg) > MaxNote {
		err = refuse(Malformed, "the note would be %d bytes long; at most %d are allowed", len(msg), MaxNote)
	}
	return msg, err
}

// Text returns what a note says, or msg itself if it is not signed, without
// asking who signed it.
func Text(msg []byte) ([]byte, error) {
	text, _, err := split(msg)
	if ReasonOf(err) == Unsigned {
		return msg, nil
	}
	return []byte(text), err
}

// Merge returns the note with the signatures of both a and b, each once, in an
// order of its own: whoever merges the same signatures gets the same bytes. Both
// must be of one text. It verifies nothing.
func Merge(a, b []byte) ([]byte, error) {
	text, sigs, err := split(a)
	if err != nil {
		return nil, err
	}
	other, more, err := split(b)
	if err != nil {
		return nil, err
	}
	if text != other {
		return nil, refuse(Differs, "the notes to be merged are of different texts")
	}
	return join(text, ordered(append(sigs, more...)))
}

// ordered sorts signatures by name, key and value, and drops those that are
// there twice.
func ordered(sigs []note.Signature) []note.Signature {
	slices.SortFunc(sigs, func(a, b note.Signature) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Hash, b.Hash), strings.Compare(a.Base64, b.Base64))
	})
	return slices.Compact(sigs)
}

// raw returns the bytes of a signature that split found.
func raw(s note.Signature) []byte {
	b, _ := base64.StdEncoding.DecodeString(s.Base64) // note.Open decoded it before
	return b[4:]
}
