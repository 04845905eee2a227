package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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
	// infirmary knows whether what the store holds may be served.
	infirmary *infirmary
	// logMender fills holes in the log of a node that does not write it.
	logMender *logMender
}

// openStorage opens the data directory and checks that its parts belong
// together. What it opened is closed by stop, also after an error.
func openStorage(ctx context.Context, o *Options, sigs *signatures, reg prometheus.Registerer, stop *cleanup) (*storage, error) {
	if err := durable.MkdirAll(durable.OS, o.Data, 0o750); err != nil {
		return nil, fmt.Errorf("make data directory %s: %w", o.Data, err)
	}
	if err := checkRestored(o.Data); err != nil {
		return nil, err
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

	if s.infirmary, err = openInfirmary(o.Data, logger("infirmary"), reg); err != nil {
		return nil, err
	}
	s.infirmary.writer = s.node.writer()
	if err := s.infirmary.Reason(); err != nil && s.node.writer() {
		return nil, writerDamaged(o.Data, err)
	}
	s.logMender = newLogMender(logger("log"))
	s.logMender.found = func(d txlog.Damage) {
		s.infirmary.report(finding{
			Part: partLog, Err: d.Err, Evidence: d.Evidence, Bytes: d.Lost, Place: d.Err.Segment, Stays: d.Kind == txlog.RefusedSegment,
		})
	}
	s.logMender.repaired = s.infirmary.repaired
	s.log, err = txlog.Open(filepath.Join(o.Data, logDir), txlog.Options{
		SegmentBytes: cmp.Or(o.SegmentBytes, segmentBytes(o.DiskBudget)), Logger: logger("log"), Registerer: reg,
		Repair: !s.node.writer(), Damaged: s.logMender.damaged,
	})
	if is[*txlog.CorruptError](err) && s.node.writer() {
		return nil, writerDamaged(o.Data, fmt.Errorf("open log: %w", err))
	}
	if err != nil {
		return nil, fmt.Errorf("open log in %s: %w", o.Data, err)
	}
	stop.addClose("close log", s.log.Close)

	if err := s.openStore(lmdbstore.Options{Verify: o.VerifyStore, Logger: logger("store"), Registerer: reg}); err != nil {
		return nil, err
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

// writerDamaged refuses to start a writer: what it wrote may be nowhere else, so
// nothing of it is thrown away without somebody who says so.
func writerDamaged(dir string, err error) error {
	return fmt.Errorf("the writer's data directory %s is damaged: %w; give it back what a follower holds with "+
		"qs-peer restore --data %s --from HTTP_ADDR, which keeps what is there aside", dir, err, dir)
}

// openStore opens the store. Where others hold the data, too, a damaged one is set
// aside, and the node begins in quarantine with an empty one.
func (s *storage) openStore(o lmdbstore.Options) error {
	dir := filepath.Join(s.dir, storeDir)
	store, err := lmdbstore.Open(dir, o)
	if errors.Is(err, lmdbstore.ErrDamaged) {
		if s.node.writer() {
			return writerDamaged(s.dir, err)
		}
		// Written down first: what is left after SetAside looks like a new node.
		s.infirmary.report(finding{Part: partStore, Err: err})
		var evidence string
		if evidence, err = lmdbstore.SetAside(dir); err == nil {
			s.infirmary.keep(evidence)
			store, err = lmdbstore.Open(dir, o)
		}
	}
	if err != nil {
		return fmt.Errorf("open store in %s: %w", s.dir, err)
	}
	s.store = store
	s.infirmary.resume(store)
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
	} else if !inLog.IsZero() && inStore.Pos.Seq > s.log.Head().Seq && s.infirmary.reason() == nil {
		// It lost its end: what is between comes from others, as for any hole.
		if err := s.log.Skip(inStore.Pos); err != nil {
			return fmt.Errorf("continue the log in %s at the store's entry: %w", s.dir, err)
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
		return writerDamaged(s.dir, fmt.Errorf("the store is at entry %d and the writer's log ends at entry %d: entries are missing", inStore.Pos.Seq, head.Seq))
	}
	if !s.log.Dataset().IsZero() {
		return nil
	}
	if bound := s.node.dataset(); !bound.IsZero() {
		return writerDamaged(s.dir, fmt.Errorf("it belongs to the writer of dataset %s, and %s/ in it is empty", bound, logDir))
	}
	var id txlog.DatasetID
	rand.Read(id[:]) // never fails
	if _, err := s.log.Create(id); err != nil {
		return fmt.Errorf("create dataset in %s: %w", s.dir, err)
	}
	return nil
}

// halt returns why the log must not be continued.
func (s *storage) halt() error { return cmp.Or(s.proof.halt(), s.infirmary.halt()) }

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
