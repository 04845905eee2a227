package lmdbstore

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
)

// readTxn is a slot of the pool with its LMDB transaction, which is reset
// between uses and renewed for the next.
type readTxn struct {
	txn       *guard.Txn
	scratch   []byte // what get returns, until the next
	since     time.Time
	index     int    // in readers.busy
	epoch     uint64 // the readers' when the slot was taken
	interrupt func() // tells a patient reader that the environment is to be drained
}

// readers is the pool of an environment's read transactions.
type readers struct {
	turn sync.Mutex // held from drain to resume

	mu       sync.Mutex // guards the rest
	room     sync.Cond  // a slot is free, or the pool resumed or closed
	quiet    sync.Cond  // the last reader ended
	limit    int        // at most so many at a time
	max      int        // the same, or less while LMDB's table has no room for more
	idle     []*readTxn // last in, first out: few slots of LMDB's table are used
	busy     []*readTxn
	draining bool
	closed   bool
	epoch    uint64 // how often the environment was replaced
}

func newReaders(limit int) *readers {
	r := &readers{limit: limit, max: limit}
	r.room.L, r.quiet.L = &r.mu, &r.mu
	return r
}

// take waits for a slot.
func (r *readers) take(interrupt func()) (*readTxn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed && (r.draining || len(r.busy) >= r.max) {
		r.room.Wait()
	}
	if r.closed {
		return nil, errEnvClosed
	}
	var t *readTxn
	if n := len(r.idle); n > 0 {
		t, r.idle = r.idle[n-1], r.idle[:n-1]
	} else {
		t = new(readTxn)
	}
	t.since, t.index, t.epoch, t.interrupt = time.Now(), len(r.busy), r.epoch, interrupt
	r.busy = append(r.busy, t)
	return t, nil
}

// give returns a slot; keep says whether its transaction can be renewed.
func (r *readers) give(t *readTxn, keep bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.busy[len(r.busy)-1]
	r.busy[t.index], last.index = last, t.index
	r.busy = r.busy[:len(r.busy)-1]
	t.interrupt = nil
	if keep {
		r.idle = append(r.idle, t)
	}
	r.room.Signal()
	if len(r.busy) == 0 {
		r.quiet.Broadcast()
	}
}

// drain keeps new readers waiting until resume, and returns when the running
// ones have ended and their transactions are gone. It returns false, with
// nothing to resume, if the pool was closed or is past epoch.
func (r *readers) drain(epoch *uint64) bool {
	r.turn.Lock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || (epoch != nil && *epoch != r.epoch) {
		r.turn.Unlock()
		return false
	}
	r.draining = true
	for _, t := range r.busy {
		if t.interrupt != nil {
			t.interrupt()
		}
	}
	for len(r.busy) > 0 {
		r.quiet.Wait()
	}
	r.empty()
	return true
}

// tryDrain is drain if no reader is running.
func (r *readers) tryDrain() bool {
	if !r.turn.TryLock() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.busy) > 0 {
		r.turn.Unlock()
		return false
	}
	r.draining = true
	r.empty()
	return true
}

// empty aborts the idle transactions. The caller holds mu.
func (r *readers) empty() {
	for _, t := range r.idle {
		_ = t.txn.Abort() // faults only if the environment is damaged, which is known
	}
	r.idle = nil
	r.max = r.limit
	r.epoch++
}

// resume lets readers in again after drain.
func (r *readers) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = false
	r.turn.Unlock()
	r.room.Broadcast()
}

// close drains for good. It returns false if that was done before.
func (r *readers) close() bool {
	if !r.drain(nil) {
		return false
	}
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.resume()
	return true
}

// current returns the epoch.
func (r *readers) current() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

// load returns how many readers are running and since when the oldest is.
func (r *readers) load() (running int, oldest time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.busy {
		if oldest.IsZero() || t.since.Before(oldest) {
			oldest = t.since
		}
	}
	return len(r.busy), oldest
}

// shrink adopts the number of slots that LMDB's table turned out to have room
// for. It returns false if there was none at all.
func (r *readers) shrink() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.busy) + len(r.idle)
	if n == 0 {
		return false
	}
	r.max = min(r.max, n)
	return true
}

// begin starts a read transaction, waiting for a slot. interrupt, if not nil, is
// called when the environment is to be drained; without it, the transaction is
// expected to be short.
func (e *env) begin(interrupt func()) (*readTxn, error) {
	return e.beginBy(interrupt, &e.writer)
}

// beginBy is begin for who may hold e.writer already; then writer is a lock that nobody
// else has.
func (e *env) beginBy(interrupt func(), writer sync.Locker) (*readTxn, error) {
	reopened := false
	for {
		if err := e.injury.get(); err != nil {
			return nil, err
		}
		t, err := e.readers.take(interrupt)
		if err != nil {
			return nil, err
		}
		if err = e.start(t); err == nil {
			return t, nil
		}
		resized, full := isMapResized(err), isReadersFull(err)
		relieved := full && e.checkReaders() > 0
		// Of the two the lock file is made anew when the environment is opened again.
		var fault *guard.Fault
		if errors.As(err, &fault) && fault.Stale && e.lock != nil && !reopened {
			reopened = true
			e.log.Error("the lock file and the data file do not belong together; the environment is opened again", "dir", e.dir)
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		if t.txn != nil {
			err = after(err, t.txn.Abort())
		}
		e.readers.give(t, false)
		switch {
		case needsHealing(err):
			if err := e.healBy(t.epoch, writer); err != nil {
				return nil, err
			}
		case resized: // by the process that owns the store
			if err := e.adoptMap(t.epoch, writer); err != nil {
				return nil, err
			}
		case relieved, isBadSlot(err): // the next one gets another slot
		case full && e.readers.shrink(): // to what other processes left us
		case full:
			return nil, fmt.Errorf("begin read transaction in %s: other processes take all %d slots: %w", e.dir, e.slots, err)
		default:
			return nil, e.note(fmt.Errorf("begin read transaction in %s: %w", e.dir, err))
		}
	}
}

func (e *env) start(t *readTxn) error {
	if t.txn != nil {
		return t.txn.Renew()
	}
	if e.broken != nil {
		return e.broken
	}
	if err := e.checkLock(t.epoch, (*lockView).check); err != nil { // a new transaction takes a lock
		return err
	}
	txn, err := e.ldb.Begin(flagReadonly)
	if err != nil {
		return err
	}
	t.txn = txn
	return nil
}

func (e *env) adoptMap(epoch uint64, writer sync.Locker) error {
	writer.Lock()
	defer writer.Unlock()
	return e.remap(0, epoch)
}

// end ends a read transaction.
func (e *env) end(t *readTxn) {
	keep := e.note(t.txn.Reset()) == nil && e.injury.get() == nil
	if !keep {
		_ = t.txn.Abort() // the damage is noted
	}
	e.readers.give(t, keep)
}

// get returns a copy of what LMDB holds.
func (t *readTxn) get(dbi guard.DBI, key []byte) (raw []byte, ok bool, err error) {
	return found(t.txn.Get(dbi, key, nil, nil))
}

// scratchKept is the largest buffer that a transaction keeps, in bytes.
const scratchKept = 1 << 16

// peek is get of what is needed until the next peek only.
func (t *readTxn) peek(dbi guard.DBI, key []byte) (raw []byte, ok bool, err error) {
	raw, ok, err = found(t.txn.Get(dbi, key, t.scratch, nil))
	if cap(raw) > cap(t.scratch) && cap(raw) <= scratchKept {
		t.scratch = raw
	}
	return raw, ok, err
}

func found(raw []byte, err error) ([]byte, bool, error) {
	if isNotFound(err) {
		return nil, false, nil
	}
	return raw, err == nil, err
}
