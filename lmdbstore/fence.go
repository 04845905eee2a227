package lmdbstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

// This file is the fence around the binding: nothing above it sees a
// transaction, a cursor or a handle of LMDB except through it. What each part
// keeps out, measured with both bindings (docs/decisions/0001-lmdb-binding.md):
//
//	guard       a fault or an assert in LMDB, which ends the process (docs/decisions/0012)
//	openOnce    a second open of one environment in a process drops the first one's locks
//	env.update  one writer at a time, pinned to its OS thread: LMDB's robust mutex stays in a
//	            list of the thread, which otherwise outlives the environment
//	env.update  offers Txn.Put and Txn.Del only, because cursors that write corrupt with the older
//	            binding, and creates no database outside a write transaction
//	readers     an own pool (sync.Pool drops transactions), drained before the environment is
//	            closed or remapped: a transaction after that is a segmentation fault
//	lastBefore  Last only on a fresh cursor of a read transaction
//	put         no empty value reaches LMDB: reading one at the end of the file is a bus error
const minMapBytes = 1 << 20

var (
	errEnvClosed = errors.New("environment is closed")
	errTxEnded   = errors.New("transaction has ended")
)

// env is one open LMDB environment.
type env struct {
	dir      string
	readonly bool
	values   encoding
	slots    int // size of the reader table, if this process makes it
	log      *slog.Logger
	pages    *pages // nil if readonly
	readers  *readers
	injury   *injury

	writer  sync.Mutex // held by the write transaction; guards scratch, before, hasher, checked, refused, healed and wrote
	scratch []byte     // what put writes
	before  []byte     // what put and del found
	hasher  hasher
	checked time.Time // when stale readers were last looked for
	refused time.Time // when growIfQuiet last got no larger map
	healed  bool      // it was opened again since the state was read
	wrote   bool      // and committed since it was opened

	// Replaced by remap, which has drained the readers and holds writer.
	ldb      *guard.Env
	lock     *lockView // nil if readonly, or unknown
	file     fileID
	kv, meta guard.DBI
	pageSize int64
	broken   error // what left the environment closed, an errBroken

	lockBad   atomic.Uint64 // 1 + the readers' epoch in which the lock file was found damaged; 0: it is not
	lockKnown bool          // the lock file was laid out as expected once

	mapBytes atomic.Int64
	mapMost  int64         // in tests: a larger map is refused, as under a ulimit; 0: none is
	stale    *atomic.Int64 // counts reader slots of dead processes that were cleared
	forget   func()
}

type envOptions struct {
	mapBytes   int64 // 0: as the file says
	maxReaders int
	slots      int
	readonly   bool
	create     bool
	values     encoding
	log        *slog.Logger
	stale      *atomic.Int64
}

// openEnv opens the environment in dir. The file must have passed checkHeader
// unless it is to be created.
func openEnv(dir string, o envOptions) (*env, error) {
	forget, err := openOnce(dir)
	if err != nil {
		return nil, err
	}
	e := &env{
		dir: dir, readonly: o.readonly, values: o.values, slots: o.slots, log: o.log,
		readers: newReaders(o.maxReaders), injury: newInjury(), stale: o.stale, forget: forget, checked: time.Now(),
	}
	if err := e.open(o.mapBytes, o.create); err != nil {
		e.lock.close()
		forget()
		return nil, err
	}
	if !o.readonly {
		if e.pages, err = openPages(dir); err != nil {
			err = errors.Join(err, e.shut(e.ldb))
			e.lock.close()
			forget()
			return nil, err
		}
	}
	e.checkReaders()
	return e, nil
}

// openOnce notes that this process has the environment in dir open.
func openOnce(dir string) (forget func(), err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	id := [2]uint64{uint64(st.Dev), st.Ino}
	openEnvs.Lock()
	defer openEnvs.Unlock()
	if _, dup := openEnvs.ids[id]; dup {
		return nil, fmt.Errorf("open environment %s: this process has it open already; LMDB allows that once, share the Store or the Reader", dir)
	}
	openEnvs.ids[id] = struct{}{}
	return func() {
		openEnvs.Lock()
		defer openEnvs.Unlock()
		delete(openEnvs.ids, id)
	}, nil
}

// LMDB's locks belong to the process, so this has to be one per process too.
var openEnvs = struct {
	sync.Mutex
	ids map[[2]uint64]struct{} // by device and inode
}{ids: make(map[[2]uint64]struct{})}

// open opens LMDB, with a smaller map when the system refuses the address space.
func (e *env) open(size int64, create bool) error {
	least := int64(minMapBytes)
	if info, err := os.Stat(filepath.Join(e.dir, dataFile)); err == nil {
		least = max(least, info.Size())
	}
	if size > 0 {
		size = max(size, least)
	}
	if !e.readonly {
		if err := reserveLock(e.dir, e.slots); err != nil {
			return fmt.Errorf("open environment %s: %w", e.dir, err)
		}
		e.lock.close()
		e.lock, e.wrote = viewLock(e.dir), false
	}
	for wanted := size; ; size = max(size/2, least) {
		err := e.tryOpen(size, create)
		if err == nil {
			e.knowLock()
			if size < wanted {
				e.log.Warn("less address space than asked for (ulimit -v?); the map will have to grow more often",
					"dir", e.dir, "asked_bytes", wanted, "map_bytes", size)
			}
			return nil
		}
		if !errors.Is(sysErrno(err), syscall.ENOMEM) || size <= least {
			if isUnsound(err) {
				err = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			return fmt.Errorf("open environment %s: %w", e.dir, sysErrno(err))
		}
	}
}

func (e *env) tryOpen(size int64, create bool) (err error) {
	if e.mapMost > 0 && size > e.mapMost {
		return calls.Error("mdb_env_open", guard.Code(syscall.ENOMEM))
	}
	var flags uint
	if e.readonly {
		flags = flagReadonly
	}
	ldb, err := calls.Open(e.dir, guard.Options{DBs: 2, Readers: e.slots, MapSize: size, Flags: flags})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = after(err, e.shut(ldb))
		}
	}()
	if e.file, err = fileOf(ldb.FD()); err != nil {
		return err
	}
	begin, open := uint(flagReadonly), uint(0)
	if create {
		begin, open = 0, flagCreate
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	txn, err := ldb.Begin(begin)
	if err != nil {
		return err
	}
	var dbi [2]guard.DBI
	for i, name := range []string{dbKV, dbMeta} {
		if dbi[i], err = txn.OpenDBI(name, open); err != nil {
			break
		}
	}
	if err != nil {
		if !isFault(err) || !create {
			err = after(err, txn.Abort())
		}
		if isNotFound(err) {
			err = fmt.Errorf("%w: it lacks the databases kv and meta", ErrDamaged)
		}
		return err
	}
	if err := txn.Commit(); err != nil { // without it the handles would be gone
		return err
	}
	info, err := ldb.Info()
	if err != nil {
		return err
	}
	e.ldb, e.kv, e.meta, e.pageSize = ldb, dbi[0], dbi[1], int64(info.PageSize)
	e.mapBytes.Store(info.MapSize)
	return nil
}

// remap opens the environment anew with a map of size bytes (0: as the file
// says) once the readers have ended. It is done by closing because LMDB leaves
// an environment without any map when it cannot get the new one. The caller
// holds e.writer, and epoch says what it found too small: somebody else may
// have been faster.
func (e *env) remap(size int64, epoch uint64) error {
	if n, oldest := e.readers.load(); n > 0 {
		e.log.Info("remapping waits for readers to end", "dir", e.dir, "readers", n, "oldest_seconds", time.Since(oldest).Seconds())
	}
	if !e.readers.drain(&epoch) {
		return nil
	}
	defer e.readers.resume()
	return e.reopen(size)
}

func (e *env) reopen(size int64) error {
	before := e.mapBytes.Load()
	var err error
	if ldb := e.ldb; ldb != nil {
		e.ldb = nil
		err = e.shut(ldb)
	}
	if err == nil {
		err = e.open(size, false)
	}
	if err != nil {
		// Noted if it is about damage, so that it is not tried again.
		e.broken = e.note(fmt.Errorf("%w: %w", errBroken, err))
		return e.broken
	}
	e.broken = nil
	e.log.Info("remapped", "dir", e.dir, "from_bytes", before, "to_bytes", e.mapBytes.Load())
	return nil
}

// usedBytes returns how much of the map is taken.
func (e *env) usedBytes() (int64, error) {
	info, err := e.ldb.Info()
	if err != nil {
		return 0, err
	}
	return (info.LastPage + 1) * e.pageSize, nil
}

// checkReaders frees the slots of readers whose process died, and returns how
// many there were. The caller holds writer or a slot of readers.
func (e *env) checkReaders() int {
	if e.lock != nil && e.lock.check() != nil {
		return 0 // whoever begins a transaction tells
	}
	n, err := e.ldb.CheckReaders()
	if err != nil {
		e.log.Warn("cannot look for stale readers", "dir", e.dir, "err", err)
		_ = e.note(err)
		return 0
	}
	if n > 0 {
		e.stale.Add(int64(n))
		e.log.Info("cleared stale readers", "dir", e.dir, "readers", n)
	}
	return n
}

// close waits for transactions to end and closes the environment. It may be
// called twice.
func (e *env) close() error {
	e.writer.Lock()
	defer e.writer.Unlock()
	if !e.readers.close() {
		return nil
	}
	defer e.forget()
	var err error
	if e.pages != nil {
		err = e.pages.close()
	}
	if ldb := e.ldb; ldb != nil {
		e.ldb = nil
		if shutErr := e.shut(ldb); !isFault(shutErr) { // a fault is noted
			err = errors.Join(err, shutErr)
		}
	}
	e.lock.close()
	e.lock = nil
	return err
}

// shut closes LMDB, or if it cannot, lets go of the file so that its space is free
// once it is removed. Either way ldb is gone.
func (e *env) shut(ldb *guard.Env) error {
	err := ldb.Close()
	if !isFault(err) {
		return err
	}
	_ = e.note(err)
	e.log.Error("LMDB stopped while it closed an environment, or before: the process keeps some memory and a descriptor of the lock file",
		"dir", e.dir, "err", err, "environments_so_far", guard.Kept())
	// The lock file stays mapped, because the thread that wrote may hold a lock in
	// it for ever; whoever opens the environment again gets a new one, unless it is
	// another process's.
	if !e.readonly {
		if failed := os.Remove(filepath.Join(e.dir, lockFile)); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
			return failed
		}
	}
	if failed := letGo(e.file, ldb.FD()); failed != nil {
		return failed
	}
	return err
}

// writeTxn is what a write transaction may do.
type writeTxn struct {
	env   *env
	txn   *guard.Txn
	touch *mdbfile.Touch
}

// update runs fn in a write transaction and commits it durably. The caller
// holds e.writer. Errors are the binding's, unwrapped.
func (e *env) update(fn func(*writeTxn) error) error {
	if err := e.injury.get(); err != nil {
		return err
	}
	if e.ldb == nil {
		if e.broken != nil {
			return e.broken
		}
		return errEnvClosed
	}
	touch, err := e.pages.touch()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := e.checkLock(e.readers.current(), func(l *lockView) error {
		if err := l.check(); err != nil {
			return err
		}
		return l.checkTxn(touch.Txnid(), !e.wrote)
	}); err != nil {
		return err
	}
	txn, err := e.ldb.Begin(0)
	if err != nil {
		return err
	}
	if err = fn(&writeTxn{e, txn, touch}); err == nil {
		if err = txn.Commit(); err == nil {
			e.wrote = true
		}
	} else if !isFault(err) {
		err = after(err, txn.Abort())
	}
	return err
}

func (w *writeTxn) putMeta(key string, value []byte) error {
	return w.txn.Put(w.env.meta, []byte(key), value)
}

// putState stores where the environment stands.
func (w *writeTxn) putState(s State) error {
	for _, f := range metaFields {
		if err := w.putMeta(f.key, f.value(s)); err != nil {
			return err
		}
	}
	return nil
}

// put stores the user's value with its checksum, and takes the pair that it
// replaces off the digest.
func (w *writeTxn) put(key, value []byte, d *Digest) error {
	w.env.scratch = appendValue(w.env.scratch[:0], key, value)
	defer w.env.trim()
	if err := w.touch.Put(dbKV, key); err != nil {
		return err
	}
	raw, replaced, err := w.txn.Swap(w.env.kv, key, w.env.scratch, w.env.before)
	if err != nil || !replaced {
		return err
	}
	return w.take(key, raw, d)
}

// del removes key, if it is there, and takes its pair off the digest.
func (w *writeTxn) del(key []byte, d *Digest) error {
	defer w.env.trim()
	if err := w.touch.Del(dbKV, key); err != nil {
		return err
	}
	raw, err := w.txn.Get(w.env.kv, key, w.env.before, nil)
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		err = w.take(key, raw, d)
	}
	if err != nil {
		return err
	}
	return w.txn.Del(w.env.kv, key)
}

// take takes the pair of key off the digest.
func (w *writeTxn) take(key, raw []byte, d *Digest) error {
	if cap(raw) > cap(w.env.before) {
		w.env.before = raw
	}
	value, err := w.env.values.open(key, raw)
	if err != nil {
		return w.env.pairError(key, err)
	}
	*d = d.minus(w.env.hasher.element(key, value))
	return nil
}

// trim lets go of buffers that a long value took.
func (e *env) trim() {
	const keep = 1 << 20
	if cap(e.scratch) > keep {
		e.scratch = nil
	}
	if cap(e.before) > keep {
		e.before = nil
	}
}

// isFault reports whether LMDB stopped in the middle of a call.
func isFault(err error) bool {
	var fault *guard.Fault
	return errors.As(err, &fault)
}

// after returns the error of an operation, or that of what it ended with if that
// did not come to an end. Neither is wrapped.
func after(err, ending error) error {
	if isFault(ending) {
		return ending
	}
	return err
}

// seek moves to the first key at or after key. Key and value are valid until the
// cursor moves.
func seek(c *guard.Cursor, key []byte) (k, v []byte, err error) {
	if len(key) == 0 {
		return c.Get(nil, opFirst)
	}
	return c.Get(key, opSetRange)
}

// firstAtOrAfter opens a cursor on the first key ≥ from (empty: of all). The
// caller closes the cursor, unless it is nil.
func firstAtOrAfter(t *Tx, r *Range, from []byte) (c *guard.Cursor, key, raw []byte, err error) {
	if c, err = openCursor(t, r); err != nil {
		return nil, nil, nil, err
	}
	// LMDB takes no longer bound. Of the keys that can be, those after a longer
	// one are those after its beginning.
	cut := from[:min(len(from), txlog.MaxKey)]
	key, raw, err = seek(c, cut)
	if err == nil && bytes.Compare(key, from) < 0 {
		key, raw, err = c.Get(nil, opNext)
	}
	return c, key, raw, err
}

// lastBefore opens a cursor on the last key < before (nil: of all).
func lastBefore(t *Tx, r *Range, before []byte) (c *guard.Cursor, key, raw []byte, err error) {
	if before != nil {
		c, _, _, err = firstAtOrAfter(t, r, before)
		if err == nil {
			key, raw, err = c.Get(nil, opPrev)
			return c, key, raw, err
		}
		if !isNotFound(err) {
			return c, nil, nil, err
		}
		c.Close() // what a cursor does after it found nothing differs by version
	}
	if c, err = openCursor(t, r); err != nil {
		return nil, nil, nil, err
	}
	key, raw, err = c.Get(nil, opLast)
	return c, key, raw, err
}

// openCursor opens a cursor that takes the memory that r allows.
func openCursor(t *Tx, r *Range) (*guard.Cursor, error) {
	c, err := t.t.txn.OpenCursor(t.env.kv)
	if err != nil {
		return nil, err
	}
	c.KeysOnly, c.Room = r.KeysOnly, r.Room
	return c, nil
}
