package peer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	quarantineName = "quarantine.json"
	caseFormat     = 1
	casePrefix     = "quarantine-"
	maxCases       = 16 // kept once they are closed: the newest
	maxTried       = 16 // kept of a case: the last ones
)

// errCaseUnreadable is about a file that is there and can not be understood.
var errCaseUnreadable = errors.New("the file that says why this node is in quarantine can not be read")

// quarantine is quarantine.json: why the live environment is out of service, or, of
// partLog, why the writer is not to start.
type quarantine struct {
	Format   int       `json:"format"`
	Part     part      `json:"part"`
	Reason   string    `json:"reason"`
	Since    time.Time `json:"since"`
	Seq      uint64    `json:"seq"`  // applied then; 0: unknown
	Hash     string    `json:"hash"` // of that entry
	Evidence string    `json:"evidence,omitempty"`
	// Generation is the store's environment that is meant. Once another is current
	// the case is over.
	Generation uint64  `json:"generation"`
	Damaged    int64   `json:"damaged,omitempty"` // bytes, at least
	Tried      []tried `json:"tried,omitempty"`
	Attempts   int     `json:"attempts"`
}

// tried is an attempt to mend.
type tried struct {
	Kind    string    `json:"kind"`
	Time    time.Time `json:"time"`
	Fetched int64     `json:"fetched"` // bytes
	Error   string    `json:"error,omitempty"`
}

func (q *quarantine) tried(r repair) {
	t := tried{Kind: r.Kind, Time: time.Now().UTC(), Fetched: r.Fetched}
	if r.Err != nil {
		t.Error = r.Err.Error()
	}
	q.Attempts++
	q.Tried = append(q.Tried, t)
	q.Tried = q.Tried[max(0, len(q.Tried)-maxTried):]
}

// pos is what was applied, zero if that is not known.
func (q *quarantine) pos() txlog.Pos {
	hash, err := txlog.ParseHash(q.Hash)
	if err != nil {
		return txlog.Pos{}
	}
	return txlog.Pos{Seq: q.Seq, Hash: hash}
}

// caseFile is where an open case is, and where closed ones go.
type caseFile struct{ path, evidence string }

func newCaseFile(dir string) caseFile {
	return caseFile{path: filepath.Join(dir, quarantineName), evidence: filepath.Join(dir, evidenceDir)}
}

func (f caseFile) read() (*quarantine, error) {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	q := &quarantine{}
	if err := json.Unmarshal(text, q); err != nil {
		return nil, fmt.Errorf("%w: parse %s: %w", errCaseUnreadable, f.path, err)
	}
	if q.Format != caseFormat || !slices.Contains(parts, q.Part) {
		return nil, fmt.Errorf("%w: %s has format %d and is about %q, which this version of qs-peer does not know", errCaseUnreadable, f.path, q.Format, q.Part)
	}
	return q, nil
}

func (f caseFile) write(q *quarantine) error { return writeJSON(f.path, q) }

// close puts the case with the evidence.
func (f caseFile) close(q *quarantine) error {
	if err := durable.MkdirAll(durable.OS, f.evidence, 0o750); err != nil {
		return err
	}
	kept := writeJSON(filepath.Join(f.evidence, casePrefix+q.Since.Format("20060102T150405.000000000Z")+".json"), q)
	return errors.Join(durable.Remove(durable.OS, f.path), kept, f.prune())
}

// prune bounds how many closed cases are kept.
func (f caseFile) prune() error {
	entries, err := os.ReadDir(f.evidence)
	if err != nil {
		return err
	}
	names := []string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), casePrefix) {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(b, a) })
	for _, name := range names[min(maxCases, len(names)):] {
		err = errors.Join(err, durable.Remove(durable.OS, filepath.Join(f.evidence, name)))
	}
	return err
}
