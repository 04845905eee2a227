package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// MismatchError means that two managers say different things of one position:
// one of them diverged, is damaged, or lies. It wraps ErrConflict.
type MismatchError struct {
	Want, Got Manifest // as it was signed, and as it was minted here
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%v: entry %s is signed with infohash %v and %d pairs at %v, and minted here with infohash %v and %d pairs at %v",
		ErrConflict, e.Want.Pos, e.Want.InfoHash, e.Want.Pairs, e.Want.Time, e.Got.InfoHash, e.Got.Pairs, e.Got.Time)
}

func (e *MismatchError) Unwrap() error { return ErrConflict }

// Countersign adds a note's signatures to those of a snapshot that is held, and
// returns it with them. Both must be of one manifest. It verifies no signature.
func (r *Repo) Countersign(pos txlog.Pos, note []byte) (*Snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	i := slices.IndexFunc(r.held, func(s *Snapshot) bool { return s.Manifest.Pos == pos })
	if i < 0 {
		return nil, fmt.Errorf("countersign snapshot %s: %w", pos, fs.ErrNotExist)
	}
	return r.countersign(r.held[i], note)
}

// countersign replaces s, which is held, by one with more signatures. The caller
// holds mu.
func (r *Repo) countersign(s *Snapshot, note []byte) (*Snapshot, error) {
	merged, err := mergeNotes(s.Note, note)
	if err != nil {
		return nil, fmt.Errorf("countersign snapshot %s: %w", s.Manifest.Pos, err)
	}
	if bytes.Equal(merged, s.Note) {
		return s, nil
	}
	if err := r.writeNote(Name(s.Manifest.Pos), merged); err != nil {
		return nil, err
	}
	signed := *s
	signed.Note = merged
	r.held = slices.Clone(r.held)
	r.held[slices.Index(r.held, s)] = &signed
	return &signed, nil
}

func (r *Repo) writeNote(name string, note []byte) error {
	if err := durable.WriteFile(r.o.FS, filepath.Join(r.dir, name+manifestExt), note, 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// mergeNotes is signing.Merge, and takes bare texts, too.
func mergeNotes(a, b []byte) ([]byte, error) {
	textA, err := signing.Text(a)
	if err != nil {
		return nil, err
	}
	textB, err := signing.Text(b)
	switch {
	case err != nil:
		return nil, err
	case !bytes.Equal(textA, textB):
		return nil, errors.New("the two manifests differ")
	case len(textB) == len(b):
		return a, nil
	case len(textA) == len(a):
		return b, nil
	}
	return signing.Merge(a, b)
}

// sign returns m as it is kept: signed, if there is a signer. With claimed, what
// others signed, it has to be the same, and gets their signatures, too.
func (r *Repo) sign(m *Manifest, claimed []byte) ([]byte, error) {
	note := m.Encode()
	if r.o.Signer != nil {
		var err error
		if note, err = r.o.Signer.Sign(note); err != nil {
			return nil, err
		}
	}
	if claimed == nil {
		return note, nil
	}
	want, err := ParseNote(claimed)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want.Encode(), m.Encode()) {
		return nil, &MismatchError{Want: *want, Got: *m}
	}
	return mergeNotes(claimed, note)
}

// signed reports whether s bears this node's signature, or none is wanted.
func (r *Repo) signed(s *Snapshot) bool {
	note, err := r.sign(&s.Manifest, s.Note)
	return err == nil && bytes.Equal(note, s.Note)
}
