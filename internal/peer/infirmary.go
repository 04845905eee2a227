package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// part is what of a node damage was found in.
type part string

const (
	partStore    part = "store"    // the live environment
	partDigest   part = "digest"   // the live environment is sound, and holds other data than the fleet
	partChain    part = "chain"    // so does the log
	partLog      part = "log"      // a segment
	partSnapshot part = "snapshot" // a file of the snapshots directory
	partFork     part = "fork"     // two histories are signed
)

var parts = []part{partStore, partDigest, partChain, partLog, partSnapshot, partFork}

// grave reports whether nothing of the live environment may be served.
func (p part) grave() bool { return p == partStore || p == partDigest || p == partChain }

// finding is what a detector of damage found.
type finding struct {
	Part     part
	Err      error
	Evidence string // path of what is kept of it, if anything is
	Bytes    int64  // damaged, as far as known
	// Generation is the store's environment that damage of it was found in; 0: the
	// current one. Of one that was replaced meanwhile it says nothing any more.
	Generation uint64
	// Place is what is damaged, of a part that has several. What Stays there is met, and
	// reported, again and again, and counts once, its mending included.
	Place string
	Stays bool
}

// infirmary is the one place that is told of damage, whoever finds it. It takes the
// live environment out of service, writes that down so that a restart does not put
// it back, and keeps the books of what was tried to mend it. It is safe for
// concurrent use.
type infirmary struct {
	file    caseFile
	writer  bool
	logger  *slog.Logger
	metrics *repairMetrics

	// store is nil while it is being opened; fetched is the snapshot payload received
	// since the start. Both are set before others know of the infirmary.
	store   *lmdbstore.Store
	fetched func() int64

	condemned atomic.Pointer[quarantinedError] // what reads are answered; nil: they are served
	stopped   atomic.Pointer[damagedLogError]  // what writes are answered

	mu      sync.Mutex      // guards what follows
	open    *quarantine     // as in the file; nil: in service
	noted   bool            // the writer's damaged log is in the file
	before  int64           // fetched when the case was opened, or the last rung tried
	imposed chan struct{}   // closed while there is a case
	places  map[string]bool // where what is damaged stays so
}

// openInfirmary reads what an earlier process wrote down.
func openInfirmary(dir string, logger *slog.Logger, reg prometheus.Registerer) (*infirmary, error) {
	i := &infirmary{
		file: newCaseFile(dir), logger: logger, metrics: newRepairMetrics(reg), imposed: make(chan struct{}), places: map[string]bool{},
		fetched: func() int64 { return 0 },
	}
	q, err := i.file.read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return i, nil
	case errors.Is(err, errCaseUnreadable):
		// Somebody meant to keep this from being served.
		q = &quarantine{Format: caseFormat, Part: partStore, Reason: err.Error(), Since: time.Now().UTC()}
	case err != nil:
		return nil, err
	}
	i.admit(q)
	return i, nil
}

// admit opens a case.
func (i *infirmary) admit(q *quarantine) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.admitLocked(q)
}

func (i *infirmary) admitLocked(q *quarantine) {
	i.open = q
	i.before = i.fetched()
	i.condemned.Store(&quarantinedError{q.Reason, i.writer})
	close(i.imposed)
}

// reason returns why nothing of the live environment may be served, nil if it may.
// It costs reads no more than a load.
func (i *infirmary) reason() error {
	if e := i.condemned.Load(); e != nil {
		return e
	}
	return nil
}

// report takes note of damage. When it returns, nothing that is damaged is served.
func (i *infirmary) report(f finding) {
	switch {
	case f.Part.grave() && !i.quarantine(f):
		return // it is out of service, and to be mended, already
	case f.Part == partLog && i.writer:
		i.stop(f)
	}
	if !i.news(f) {
		return
	}
	i.metrics.findings.WithLabelValues(string(f.Part)).Inc()
	i.logger.Error("damage found", "part", f.Part, "err", f.Err, "evidence", f.Evidence)
	if err := i.halt(); err != nil && i.writer { // nobody mends it: what to do is not only for who writes
		i.logger.Error("the writer takes no more writes", "err", err)
	}
}

// news reports whether f tells of a place for the first time since that was sound.
func (i *infirmary) news(f finding) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	known := i.places[f.Place]
	switch {
	case f.Place == "":
	case f.Stays:
		i.places[f.Place] = true
	default:
		delete(i.places, f.Place)
	}
	return !known
}

func (i *infirmary) quarantine(f finding) (admitted bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.replacedLocked(f.Generation) {
		i.logger.Info("damage was found in a copy that was replaced meanwhile", "part", f.Part, "err", f.Err)
		return false
	}
	if i.open != nil {
		i.learnLocked(f.Bytes)
		return false
	}
	q := i.caseLocked(f)
	i.admitLocked(q)
	i.saveLocked()
	if i.store != nil {
		i.store.KeepEvidence(q.Generation)
	}
	if i.replacedLocked(q.Generation) { // this moment
		i.endReplacedLocked()
		return false
	}
	return true
}

// replacedLocked reports whether a generation of the store, 0 for no matter which, is
// not the current one.
func (i *infirmary) replacedLocked(generation uint64) bool {
	return generation != 0 && i.store != nil && i.store.Generation() != generation
}

// endReplacedLocked closes a case of an environment that is not current any more.
func (i *infirmary) endReplacedLocked() {
	i.logger.Info("what was in quarantine was replaced meanwhile", "reason", i.open.Reason)
	i.closeLocked()
}

// learnLocked notes how much of what is in quarantine is damaged, if that is more than
// was known.
func (i *infirmary) learnLocked(bytes int64) { i.open.Damaged = max(i.open.Damaged, bytes) }

// learn is learnLocked for who looked at what is in quarantine.
func (i *infirmary) learn(bytes int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open != nil {
		i.learnLocked(bytes)
	}
}

// caseLocked is a new case of what was found.
func (i *infirmary) caseLocked(f finding) *quarantine {
	q := &quarantine{Format: caseFormat, Part: f.Part, Reason: f.Err.Error(), Since: time.Now().UTC(), Evidence: f.Evidence, Damaged: f.Bytes}
	if i.store != nil {
		pos := i.store.State().Pos
		q.Generation, q.Seq, q.Hash = cmp.Or(f.Generation, i.store.Generation()), pos.Seq, pos.Hash.String()
	}
	return q
}

// stop has the writer take no writes any more, now and after a restart: it would not
// notice, as an open reads little of the log. What was applied is sound, and goes on
// being served until then.
func (i *infirmary) stop(f finding) {
	i.stopped.CompareAndSwap(nil, &damagedLogError{f.Err})
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open != nil || i.noted { // what is written down refuses the next start
		return
	}
	q := i.caseLocked(f)
	if err := i.file.write(q); err != nil { // the next finding tries again
		i.logger.Error("the damage of the log could not be written down: a restart may not know of it", "err", err)
		return
	}
	i.noted = true
}

// keep notes where the evidence of the open case is.
func (i *infirmary) keep(evidence string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.open.Evidence = evidence
	i.saveLocked()
}

// watchEvery is how often the infirmary looks which environment is current.
const watchEvery = time.Second

// watch takes the live environment out of service when something was found damaged in
// it, whoever read that, until ctx ends.
func (i *infirmary) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-i.store.Damaged():
			if generation, err := i.store.DamageIn(); err != nil {
				i.report(finding{Part: partStore, Err: err, Generation: generation})
			}
			// It stays damaged until it is replaced.
			if !pause(ctx, watchEvery) {
				return
			}
		case <-tick.C: // it may have been replaced
		case <-ctx.Done():
			return
		}
	}
}

// remains are the environment that is in quarantine, to be read and not changed.
type remains struct {
	env      string // file or directory
	at       txlog.Pos
	diverged bool // the log is no better
}

// remains says where it is; ok is false if it was not kept.
func (i *infirmary) remains() (r remains, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open == nil {
		return r, false
	}
	r = remains{env: i.open.Evidence, at: i.open.pos(), diverged: i.open.Part == partChain}
	if !i.store.State().Pos.IsZero() {
		r.env = i.store.DataFile()
	}
	return r, r.env != ""
}

// asked counts what was fetched for a repair by other ways than the swarm.
func (i *infirmary) asked(bytes int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.before -= bytes
}

// saveLocked writes the case down. A disk that takes nothing leaves it in memory.
func (i *infirmary) saveLocked() {
	if err := i.file.write(i.open); err != nil {
		i.logger.Error("a quarantine could not be written down: a restart may not know of it", "err", err)
	}
}

// resume compares the case of an earlier process with the store as it was opened: it
// is over if the store holds another environment since.
func (i *infirmary) resume(store *lmdbstore.Store) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.store = store
	if i.open == nil {
		return
	}
	if !i.replacedLocked(i.open.Generation) || store.State().Pos.IsZero() {
		if i.open.Part.grave() {
			store.KeepEvidence(i.open.Generation)
		}
		return
	}
	i.logger.Info("what was in quarantine had been replaced when the last process ended")
	i.closeLocked()
}

func (i *infirmary) closeLocked() {
	if err := i.file.close(i.open); err != nil {
		i.logger.Error("the end of a quarantine could not be written down: a restart will repair once more", "err", err)
	}
	i.open = nil
	i.imposed = make(chan struct{})
	i.condemned.Store(nil)
}

var _ replica.Quarantine = (*infirmary)(nil)

// Reason implements replica.Quarantine.
func (i *infirmary) Reason() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.open == nil:
		return nil
	case i.open.Part == partChain:
		return &replica.DivergenceError{Err: errors.New(i.open.Reason)}
	}
	return errors.New(i.open.Reason)
}

// Imposed implements replica.Quarantine.
func (i *infirmary) Imposed() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.imposed
}

// Impose implements replica.Quarantine.
func (i *infirmary) Impose(reason error) {
	p := partStore
	if is[*replica.DivergenceError](reason) {
		p = partChain
	}
	i.report(finding{Part: p, Err: reason})
}

// Tried implements replica.Quarantine.
func (i *infirmary) Tried(by replica.Rung, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open == nil {
		return
	}
	if by == "" { // no repair: a copy that was on its way took the place of the current one
		if i.replacedLocked(i.open.Generation) {
			i.endReplacedLocked()
		}
		return
	}
	r := repair{Kind: string(by), Err: err, Fetched: i.fetched() - i.before}
	i.before += r.Fetched
	if err == nil {
		r.Damaged = max(i.open.Damaged, lmdbstore.PageSize)
	}
	i.metrics.count(r)
	i.open.tried(r)
	if err != nil {
		i.saveLocked()
		return
	}
	i.logger.Info("repaired", "kind", by, "fetched_bytes", r.Fetched, "took", time.Since(i.open.Since))
	i.closeLocked()
}

// repaired counts an attempt to mend something else than the live environment.
// Fetched are bytes from other nodes, damaged those that were mended.
func (i *infirmary) repaired(kind string, fetched, damaged int64, err error) {
	i.metrics.count(repair{kind, err, fetched, damaged})
	if err != nil {
		i.logger.Warn("a repair failed", "kind", kind, "err", err)
		return
	}
	i.logger.Info("repaired", "kind", kind, "fetched_bytes", fetched, "damaged_bytes", damaged)
}

// halt returns why nothing may be written any more.
func (i *infirmary) halt() error {
	if e := i.stopped.Load(); e != nil {
		return e
	}
	return i.reason()
}

// damagedLogError refuses to go on with a log whose disk returns something else than
// was written.
type damagedLogError struct{ err error }

func (e *damagedLogError) Error() string {
	return fmt.Sprintf("the writer's log is damaged, and takes no more writes: %v; stop this node, and give it back what a follower holds with qs-peer restore", e.err)
}

func (e *damagedLogError) Unwrap() error { return e.err }

// quarantinedError refuses to serve what is known to be damaged.
type quarantinedError struct {
	reason string
	writer bool
}

func (e *quarantinedError) Error() string {
	if e.writer { // nobody else takes writes, and it is not repaired by itself
		return fmt.Sprintf("quarantined: %s; the writer serves nothing and takes nothing: stop this node, and give it back what a follower holds with qs-peer restore", e.reason)
	}
	return fmt.Sprintf("quarantined: %s; until it is repaired this node serves nothing and takes nothing: ask another one", e.reason)
}
