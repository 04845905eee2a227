package heads

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	evidenceFormat = 1
	evidencePrefix = "fork-"
	evidenceSuffix = ".json"

	// maxEvidence is how many files are kept: the first ones. More of them say
	// nothing new.
	maxEvidence = 16
	// maxFrames is how many bytes of entries are kept of each side.
	maxFrames = 16 << 20
)

// Evidence proves that two histories of one dataset were signed. It needs
// nothing but the trusted keys to be checked.
type Evidence struct {
	Format  int       `json:"format"`
	Dataset string    `json:"dataset"`
	Seq     uint64    `json:"seq"`   // the entry in which they differ
	Found   time.Time `json:"found"` // by this node's clock
	From    string    `json:"from"`  // who sent theirs
	Ours    Side      `json:"ours"`
	Theirs  Side      `json:"theirs"`
}

// Side is one of the histories.
type Side struct {
	Hash string `json:"hash"` // of the entry in which they differ
	Note string `json:"note"` // a signed head of it, or of one after it
	// Frames are the entries from the one in which they differ to the note's, in
	// base64. The first may be missing when the note is of that entry itself, and
	// those that did not fit are left out, which Complete tells.
	Frames   [][]byte `json:"frames"`
	Complete bool     `json:"complete"`
}

// newSide makes a side of a history: entries lead from seq to h, or are none.
func newSide(hash txlog.Hash, h Signed, entries []txlog.Entry) Side {
	s := Side{Hash: hash.String(), Note: string(h.Note), Frames: [][]byte{}}
	size := 0
	for i := range entries {
		if size += len(entries[i].Frame()); size > maxFrames {
			return s
		}
		s.Frames = append(s.Frames, entries[i].Frame())
	}
	s.Complete = true
	return s
}

// Check returns nil if e proves a fork to who trusts these keys. If entries had
// to be left out, that they lead to the note is not checked.
func (e *Evidence) Check(t *signing.Trusted) error {
	dataset, err := txlog.ParseDatasetID(e.Dataset)
	if err != nil {
		return err
	}
	if e.Ours.Hash == e.Theirs.Hash {
		return fmt.Errorf("both sides hold the same entry %d", e.Seq)
	}
	for _, side := range []struct {
		name string
		Side
	}{{"ours", e.Ours}, {"theirs", e.Theirs}} {
		if err := side.check(t, dataset, e.Seq); err != nil {
			return fmt.Errorf("%s: %w", side.name, err)
		}
	}
	return nil
}

func (s *Side) check(t *signing.Trusted, dataset txlog.DatasetID, seq uint64) error {
	hash, err := txlog.ParseHash(s.Hash)
	if err != nil {
		return err
	}
	h, err := verify(t, []byte(s.Note), dataset)
	if err != nil {
		return err
	}
	pos := txlog.Pos{Seq: seq, Hash: hash}
	for i, frame := range s.Frames {
		e, err := txlog.Decode(frame)
		switch {
		case err != nil:
			return fmt.Errorf("entry %d of the evidence: %w", i+1, err)
		case i == 0 && e.Pos() != pos:
			return fmt.Errorf("the first entry is %v, not %v", e.Pos(), pos)
		case i > 0 && (e.Seq != pos.Seq+1 || e.Prev != pos.Hash):
			return fmt.Errorf("entry %d does not follow the one before", e.Seq)
		}
		pos = e.Pos()
	}
	if s.Complete && h.Pos != pos {
		return fmt.Errorf("the entries lead to %v, the signed head is of %v", pos, h.Pos)
	}
	if h.Pos.Seq < seq {
		return fmt.Errorf("the signed head is of entry %d, before entry %d", h.Pos.Seq, seq)
	}
	return nil
}

// save writes e to dir, unless it or enough others are there, and returns the
// path of what is.
func (e *Evidence) save(dir string) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("%s%d-%.8s-%.8s%s", evidencePrefix, e.Seq, e.Ours.Hash, e.Theirs.Hash, evidenceSuffix))
	known, err := listEvidence(dir)
	if err != nil {
		return path, err
	}
	if len(known) >= maxEvidence {
		return known[0], nil
	}
	for _, k := range known {
		if k == path {
			return path, nil
		}
	}
	text, err := json.MarshalIndent(e, "", " ")
	if err != nil {
		return path, err
	}
	if err := durable.MkdirAll(durable.OS, dir, 0o750); err != nil {
		return path, err
	}
	return path, durable.WriteFile(durable.OS, path, append(text, '\n'), 0o640)
}

// listEvidence returns the paths of the evidence in dir, in order.
func listEvidence(dir string) ([]string, error) {
	entries, err := durable.OS.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), evidencePrefix) && strings.HasSuffix(e.Name(), evidenceSuffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// ReadEvidence reads a file of evidence.
func ReadEvidence(path string) (*Evidence, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	e := &Evidence{}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if e.Format != evidenceFormat {
		return nil, fmt.Errorf("%s has format %d; this program knows %d", path, e.Format, evidenceFormat)
	}
	return e, nil
}

// Forks returns the forks that the evidence in dir tells of. A file that can not be
// read counts: somebody has to look at it.
func Forks(dir string) ([]*ForkError, error) {
	paths, err := listEvidence(dir)
	if err != nil {
		return nil, err
	}
	var forks []*ForkError
	for _, path := range paths {
		fork := &ForkError{Path: path}
		if e, err := ReadEvidence(path); err == nil {
			fork.Seq = e.Seq
			fork.Dataset, _ = txlog.ParseDatasetID(e.Dataset)
		}
		forks = append(forks, fork)
	}
	return forks, nil
}
