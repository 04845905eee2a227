// Package verify checks a data directory that no node runs on: the log's chain,
// the store's structure, the snapshots' bytes, the signed heads, and that they agree
// with each other. It changes nothing.
package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// Errors that callers branch on.
var (
	// ErrNoData means that a directory is no node's data directory.
	ErrNoData = errors.New("no node's data directory")
	// ErrInUse means that a node runs on the directory.
	ErrInUse = errors.New("in use by a running node: stop it first")
)

// Finding is something that is not as it should be.
type Finding struct {
	Part    string `json:"part"` // node, log, store, snapshot, heads or fork
	File    string `json:"file,omitempty"`
	Offset  *int64 `json:"offset,omitempty"` // in File, bytes
	Problem string `json:"problem"`
}

// String words the finding with its place.
func (f Finding) String() string {
	place := f.Part
	if f.File != "" {
		place += ": " + f.File
	}
	if f.Offset != nil {
		place += fmt.Sprintf(" at offset %d", *f.Offset)
	}
	return place + ": " + f.Problem
}

// Report is what was checked and found. Sizes are in bytes.
type Report struct {
	Data      string     `json:"data"`
	Sound     bool       `json:"sound"`
	Role      string     `json:"role"`
	Name      string     `json:"name"`
	Dataset   string     `json:"dataset"`
	Log       *Log       `json:"log"`   // null: there is none
	Store     *Store     `json:"store"` // null: there is none
	Snapshots []Snapshot `json:"snapshots"`
	Heads     *Heads     `json:"heads"` // null: there are none
	Findings  []Finding  `json:"findings"`
}

// Log is what the log holds, as far as it is sound.
type Log struct {
	First    uint64 `json:"first_seq"`
	Head     uint64 `json:"head_seq"`
	HeadHash string `json:"head_hash"`
	Entries  uint64 `json:"entries"`
	Segments int    `json:"segments"`
	Bytes    int64  `json:"bytes"`
	TornTail int64  `json:"torn_tail"` // never acknowledged; cut off at the next start
}

// Store is what the store holds.
type Store struct {
	Applied     uint64 `json:"applied_seq"`
	AppliedHash string `json:"applied_hash"`
	Pairs       uint64 `json:"pairs"`
	Bytes       int64  `json:"bytes"`
	Pages       uint64 `json:"pages"`
	FreePages   uint64 `json:"free_pages"`
}

// Snapshot is a snapshot that was read.
type Snapshot struct {
	Name     string `json:"name"`
	Seq      uint64 `json:"seq"`
	InfoHash string `json:"infohash"`
	Bytes    int64  `json:"bytes"`
	Pairs    uint64 `json:"pairs"`
	Sound    bool   `json:"sound"`
	// SignedBy are those of the trusted keys' names that signed its manifest; nil if
	// no keys were given.
	SignedBy []string `json:"signed_by,omitempty"`
}

// Heads are the signed heads that are kept.
type Heads struct {
	Count  int    `json:"count"`
	Newest uint64 `json:"newest_seq"`
	Signed string `json:"signed"` // when, by the writer's clock
	// Strange are those by none of the trusted keys, which are not among Count.
	Strange int `json:"strange,omitempty"`
}

// Options say what else is to be checked, and who is told.
type Options struct {
	// Trusted are the keys of which Need, of different names, have to have signed each
	// snapshot's manifest, and one each signed head. nil: signatures are not looked at.
	Trusted *signing.Trusted
	Need    int
	// Step, if not nil, is told what comes next.
	Step func(what string)
}

// identity is node.json.
type identity struct {
	Format  int
	Role    gossip.Role
	Name    string
	Writer  bool
	Dataset string
	Sum     string
}

// check is a verification in progress.
type check struct {
	dir    string
	o      Options
	id     identity
	report *Report
	claims []claim
}

// claim is a position that a part says it is at, which the log must confirm.
type claim struct {
	part, file string
	pos        txlog.Pos
}

// Dir verifies the data directory dir. A directory that is not sound is no error:
// see Report.Findings.
func Dir(ctx context.Context, dir string, o Options) (*Report, error) {
	c := &check{dir: dir, o: o, report: &Report{Data: dir, Snapshots: []Snapshot{}, Findings: []Finding{}}}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoData, err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%w: %s is a file", ErrNoData, dir)
	}
	text, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if errors.Is(err, fs.ErrNotExist) && !c.holds("log") && !c.holds("store") {
		return nil, fmt.Errorf("%w: %s holds neither node.json nor log/ nor store/", ErrNoData, dir)
	}
	unlock, lockErr := lock(filepath.Join(dir, "LOCK"))
	if lockErr != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, lockErr)
	}
	defer unlock()
	if err == nil {
		// A node refuses to start on fields that it does not know.
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err = d.Decode(&c.id); err == nil && d.More() {
			err = errors.New("there is something after the object")
		}
	}
	if err != nil {
		c.find("node", "node.json", err)
	}
	c.report.Role, c.report.Name, c.report.Dataset = string(c.id.Role), c.id.Name, c.id.Dataset

	for _, part := range []struct {
		what string
		run  func(context.Context) error
	}{{"the store", c.checkStore}, {"the snapshots", c.checkSnapshots}, {"the signed heads", c.checkHeads}, {"the log", c.checkLog}} {
		if o.Step != nil {
			o.Step(part.what)
		}
		if err := part.run(ctx); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	c.report.Sound = len(c.report.Findings) == 0
	return c.report, nil
}

// lock keeps nodes off the directory, without making or changing the file.
func lock(file string) (unlock func(), err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}

// holds reports whether a subdirectory is there and not empty.
func (c *check) holds(sub string) bool {
	entries, err := os.ReadDir(filepath.Join(c.dir, sub))
	return err == nil && len(entries) > 0
}

func (c *check) find(part, file string, err error) {
	f := Finding{Part: part, File: file, Problem: err.Error()}
	var corrupt *txlog.CorruptError
	if errors.As(err, &corrupt) {
		f.File = filepath.Join("log", corrupt.Segment)
		f.Offset = &corrupt.Offset
		f.Problem = fmt.Sprintf("entry %d: %s", corrupt.Seq, corrupt.Reason)
	}
	c.report.Findings = append(c.report.Findings, f)
}

func (c *check) checkStore(ctx context.Context) error {
	if !c.holds("store") {
		return nil
	}
	r, err := lmdbstore.Check(ctx, filepath.Join(c.dir, "store"))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		c.find("store", "store", err)
		return nil
	}
	c.report.Store = &Store{Applied: r.Pos.Seq, AppliedHash: r.Pos.Hash.String(), Pairs: r.Pairs, Bytes: r.Size,
		Pages: r.Pages, FreePages: r.FreePages}
	c.claims = append(c.claims, claim{"store", "store", r.Pos})
	c.sameDataset("store", "store", r.Dataset)
	return nil
}

func (c *check) checkSnapshots(ctx context.Context) error {
	dir := filepath.Join(c.dir, "snapshots")
	sound, damaged, err := snapshot.Find(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		c.find("snapshot", "snapshots", err)
		return nil
	}
	for _, d := range damaged {
		c.find("snapshot", filepath.Join("snapshots", d.Name), d.Err)
	}
	for _, s := range sound {
		file := filepath.Join("snapshots", filepath.Base(s.Path))
		err := s.Verify(ctx)
		if err == nil {
			err = sameContent(ctx, s)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		signers, refused := c.signers(s)
		for _, wrong := range []error{err, refused} {
			if wrong != nil {
				c.find("snapshot", file, wrong)
			}
		}
		m := &s.Manifest
		c.sameDataset("snapshot", file, m.Dataset)
		c.claims = append(c.claims, claim{"snapshot", file, m.Pos})
		c.report.Snapshots = append(c.report.Snapshots, Snapshot{Name: snapshot.Name(m.Pos), Seq: m.Pos.Seq,
			InfoHash: m.InfoHash.String(), Bytes: m.Size, Pairs: m.Pairs, Sound: err == nil && refused == nil, SignedBy: signers})
	}
	return nil
}

// signers returns who signed a snapshot's manifest, if that is asked for.
func (c *check) signers(s *snapshot.Snapshot) ([]string, error) {
	if c.o.Trusted == nil {
		return nil, nil
	}
	_, by, err := c.o.Trusted.Open(s.Note, c.o.Need)
	if refused, ok := errors.AsType[*signing.RefusedError](err); ok {
		by, err = refused.By, fmt.Errorf("its manifest: %w", err)
	}
	return by, err
}

// sameContent compares what a snapshot's file says inside with its manifest.
func sameContent(ctx context.Context, s *snapshot.Snapshot) error {
	if _, err := lmdbstore.CheckFile(ctx, s.Path); err != nil {
		return err
	}
	return s.VerifyStatement(ctx)
}

// sameDataset compares a part's dataset with the directory's.
func (c *check) sameDataset(part, file string, id txlog.DatasetID) {
	if c.id.Dataset != "" && !id.IsZero() && id.String() != c.id.Dataset {
		c.find(part, file, fmt.Errorf("it is of dataset %s, and the directory of %s", id, c.id.Dataset))
	}
}

// checkHeads verifies what is kept of the log's signed heads, and looks for evidence of
// forks.
func (c *check) checkHeads(context.Context) error {
	r, err := heads.Audit(filepath.Join(c.dir, "heads"), c.o.Trusted)
	if err != nil {
		c.find("heads", "heads", err)
		return nil
	}
	for _, err := range r.Damaged {
		c.find("heads", "heads", err)
	}
	if n := len(r.Heads); n+r.Strange > 0 {
		c.report.Heads = &Heads{Count: n, Newest: r.Newest.Pos.Seq, Signed: r.Newest.Time.Format(time.RFC3339Nano), Strange: r.Strange}
	}
	for _, h := range r.Heads {
		c.sameDataset("heads", "heads", h.Dataset)
		c.claims = append(c.claims, claim{"heads", "heads", h.Pos})
	}
	forks, err := heads.Forks(filepath.Join(c.dir, "evidence"))
	if err != nil {
		c.find("fork", "evidence", err)
	}
	for _, f := range forks {
		c.find("fork", filepath.Join("evidence", filepath.Base(f.Path)), f)
	}
	return nil
}

// checkLog verifies the log, and what the other parts say of where they stand.
func (c *check) checkLog(context.Context) error {
	if !c.holds("log") {
		if c.id.Writer {
			c.find("log", "log", errors.New("it is missing, and this is the writer: what it acknowledged is lost here"))
		}
		return nil
	}
	chain := map[uint64]txlog.Hash{} // at the seqs that are claimed
	for _, cl := range c.claims {
		chain[cl.pos.Seq] = txlog.Hash{}
	}
	note := func(pos txlog.Pos) {
		if _, claimed := chain[pos.Seq]; claimed {
			chain[pos.Seq] = pos.Hash
		}
	}
	r, err := txlog.VerifyEach(filepath.Join(c.dir, "log"), note)
	c.report.Log = &Log{First: r.Base.Seq + 1, Head: r.Head.Seq, HeadHash: r.Head.Hash.String(),
		Entries: r.Entries, Segments: r.Segments, Bytes: r.Bytes, TornTail: r.TornTail}
	c.sameDataset("log", "log", r.Dataset)
	if err != nil {
		c.find("log", "log", err)
		return nil // where the chain ends is not known
	}
	note(r.Base)
	for _, cl := range c.claims {
		switch hash := chain[cl.pos.Seq]; {
		case cl.pos.Seq > r.Head.Seq && cl.part == "heads" && !c.id.Writer: // entries that are still to come
		case cl.pos.Seq > r.Head.Seq:
			c.find(cl.part, cl.file, fmt.Errorf("it is at entry %d, and the log ends at entry %d: entries are missing", cl.pos.Seq, r.Head.Seq))
		case cl.pos.Seq < r.Base.Seq && cl.part == "store":
			c.find(cl.part, cl.file, fmt.Errorf("it is at entry %d, and the log begins after entry %d: entries are missing", cl.pos.Seq, r.Base.Seq))
		case cl.pos.Seq >= r.Base.Seq && hash != cl.pos.Hash:
			c.find(cl.part, cl.file, fmt.Errorf("diverged: it says that entry %d has hash %s, and the log %s", cl.pos.Seq, cl.pos.Hash, hash))
		}
	}
	return nil
}
