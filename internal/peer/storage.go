package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	logDir       = "log"
	storeDir     = "store"
	snapshotsDir = "snapshots"
	replayDir    = "replay"
	headsDir     = "heads"
	evidenceDir  = "evidence"
)

// storage is the node's data directory, open.
type storage struct {
	dir   string
	node  *node
	log   *txlog.Log
	store *lmdbstore.Store
	repo  *snapshot.Repo
	proof *proof
}

// openStorage opens the data directory and checks that its parts belong
// together. What it opened is closed by stop, also after an error.
func openStorage(ctx context.Context, o *Options, sigs *signatures, reg prometheus.Registerer, stop *cleanup) (*storage, error) {
	if err := durable.MkdirAll(durable.OS, o.Data, 0o750); err != nil {
		return nil, fmt.Errorf("make data directory %s: %w", o.Data, err)
	}
	lock, err := lockDir(o.Data)
	if err != nil {
		return nil, err
	}
	stop.addClose("unlock data directory", lock.Close)

	// Left by a process that was killed; its addresses are nobody's now.
	if err := removeIfThere(filepath.Join(o.Data, addrsName)); err != nil {
		return nil, err
	}
	// What a crash left of a replay.
	if err := durable.RemoveAll(durable.OS, filepath.Join(o.Data, replayDir)); err != nil {
		return nil, err
	}
	s := &storage{dir: o.Data}
	if s.node, err = openNode(o.Data, o); err != nil {
		return nil, err
	}
	logger := func(part string) *slog.Logger { return o.Logger.With("part", part) }

	s.log, err = txlog.Open(filepath.Join(o.Data, logDir), txlog.Options{Logger: logger("log"), Registerer: reg})
	if err != nil {
		return nil, fmt.Errorf("open log in %s: %w", o.Data, err)
	}
	stop.addClose("close log", s.log.Close)

	if lock.suspect {
		if err := checkStore(ctx, filepath.Join(o.Data, storeDir), logger("store")); err != nil {
			return nil, err
		}
		lock.suspect = false
	}
	s.store, err = lmdbstore.Open(filepath.Join(o.Data, storeDir), lmdbstore.Options{Logger: logger("store"), Registerer: reg})
	if err != nil {
		return nil, fmt.Errorf("open store in %s: %w", o.Data, err)
	}
	stop.addClose("close store", s.store.Close)

	s.repo, err = snapshot.Open(filepath.Join(o.Data, snapshotsDir), snapshot.Options{
		Signer: sigs.signer, MintRate: o.MintRate, Logger: logger("snapshots"), Registerer: reg,
	})
	if err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", o.Data, err)
	}
	stop.addClose("close snapshots", s.repo.Close)
	if err := s.agree(); err != nil {
		return nil, err
	}
	s.proof, err = openProof(o, sigs, s, reg, stop)
	return s, err
}

// checkStore reads the structure of the store that a crash left, which takes
// about a second per GB. LMDB maps the file and trusts it: a damaged page would
// crash this process too, and the next one.
func checkStore(ctx context.Context, dir string, logger *slog.Logger) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	logger.Info("the last process on this directory did not end in order: checking the store")
	_, err := lmdbstore.Check(ctx, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, lmdbstore.ErrDamaged):
		return nil // it crashed before there was anything
	case err != nil:
		return fmt.Errorf("check the store after a crash: %w", err)
	}
	return nil
}

// agree checks that the log and the store are of one dataset, begins a new one
// on a new writer, and binds the directory to it.
func (s *storage) agree() error {
	inStore, inLog, bound := s.store.State(), s.log.Dataset(), s.node.dataset()
	for _, d := range []struct {
		where string
		id    txlog.DatasetID
	}{{storeDir, inStore.Dataset}, {logDir, inLog}} {
		if !d.id.IsZero() && !bound.IsZero() && d.id != bound {
			return fmt.Errorf("data directory %s belongs to dataset %s, and %s/ in it holds dataset %s: restore what belongs there, or start with an empty directory",
				s.dir, bound, d.where, d.id)
		}
	}
	if !inStore.Dataset.IsZero() && !inLog.IsZero() && inStore.Dataset != inLog {
		return fmt.Errorf("data directory %s: %s/ holds dataset %s and %s/ holds dataset %s: restore what belongs there, or start with an empty directory",
			s.dir, storeDir, inStore.Dataset, logDir, inLog)
	}
	if s.node.writer() {
		if err := s.agreeWriter(inStore); err != nil {
			return err
		}
	}
	return s.bind()
}

// bind records the dataset once the log has one: a node that begins with
// nothing learns it from those it follows.
func (s *storage) bind() error {
	if id := s.log.Dataset(); !id.IsZero() {
		return s.node.bind(id)
	}
	return nil
}

// agreeWriter refuses a writer whose log lost entries: nobody else can give
// them back, and writing on would fork the dataset.
func (s *storage) agreeWriter(inStore lmdbstore.State) error {
	if head := s.log.Head(); inStore.Pos.Seq > head.Seq {
		return fmt.Errorf("data directory %s: the store is at entry %d and the writer's log ends at entry %d: entries are missing; restore %s/, or start with an empty directory",
			s.dir, inStore.Pos.Seq, head.Seq, logDir)
	}
	if !s.log.Dataset().IsZero() {
		return nil
	}
	if bound := s.node.dataset(); !bound.IsZero() {
		return fmt.Errorf("data directory %s belongs to the writer of dataset %s, and %s/ in it is empty: restore it, or start with an empty directory", s.dir, bound, logDir)
	}
	var id txlog.DatasetID
	rand.Read(id[:]) // never fails
	if _, err := s.log.Create(id); err != nil {
		return fmt.Errorf("create dataset in %s: %w", s.dir, err)
	}
	return nil
}

// linked reports whether a snapshot is a state of the log's history, as far as
// the log reaches: a snapshot before or after it may be.
func (s *storage) linked(pos txlog.Pos) (bool, error) {
	if s.log.Dataset().IsZero() {
		return true, nil
	}
	r, err := s.log.Reader(pos)
	if err == nil {
		return true, r.Close()
	}
	if diverged, ok := errors.AsType[*txlog.DivergedError](err); ok {
		return diverged.Have.IsZero(), nil
	}
	if _, ok := errors.AsType[*txlog.TrimmedError](err); ok {
		return true, nil
	}
	return false, err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
