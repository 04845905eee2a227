package lmdbstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// This file is the fence around the binding: nothing above it sees a
// transaction, a cursor or a handle of LMDB except through it. What each part
// keeps out, measured with both bindings (docs/decisions/0001-lmdb-binding.md):
//
//	openOnce    a second open of one environment in a process drops the first one's locks
//	env.update  one writer at a time, pinned to its OS thread: LMDB's robust mutex stays in a
//	            list of the thread, which otherwise outlives the environment
//	env.update  offers Txn.Put and Txn.Del only, because cursors that write corrupt with the older
//	            binding, and creates no database outside a write transaction
//	readers     an own pool (sync.Pool drops transactions), drained before the environment is
//	            closed or remapped: a transaction after that is a segmentation fault
//	seek        keeps the key alive past the call: LMDB's scratch space holds a pointer to it that
//	            the garbage collector finds
//	lastBefore  Last only on a fresh cursor of a read transaction
//	put, untag  no empty value reaches LMDB: the binding stores "\x00" for it, and reading one at
//	            the end of the file is a bus error
//	env         stays referenced from its owner until close: the binding closes it in a finalizer
const (
	minMapBytes = 1 << 20
	tagPlain    = 1
)

var (
	errEnvClosed = errors.New("environment is closed")
	errTxEnded   = errors.New("transaction has ended")
)

// env is one open LMDB environment.
type env struct {
	dir      string
	readonly bool
	slots    int // size of the reader table, if this process makes it
	log      *slog.Logger
	readers  *readers

	writer  sync.Mutex // held by the write transaction; guards scratch and checked
	scratch []byte
	checked time.Time // when stale readers were last looked for

	// Replaced by remap, which has drained the readers and holds writer.
	ldb      *lmdbEnv
	kv, meta lmdbDBI
	pageSize int64
	broken   error // what left the environment closed

	mapBytes atomic.Int64
	stale    *atomic.Int64 // counts reader slots of dead processes that were cleared
	forget   func()
}

type envOptions struct {
	mapBytes   int64 // 0: as the file says
	maxReaders int
	slots      int
	readonly   bool
	create     bool
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
		dir: dir, readonly: o.readonly, slots: o.slots, log: o.log,
		readers: newReaders(o.maxReaders), stale: o.stale, forget: forget, checked: time.Now(),
	}
	if err := e.open(o.mapBytes, o.create); err != nil {
		forget()
		return nil, err
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
	for wanted := size; ; size = max(size/2, least) {
		err := e.tryOpen(size, create)
		if err == nil {
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
	ldb, err := newLMDBEnv()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = ldb.Close() // says only whether it was open
		}
	}()
	if err := ldb.SetMaxDBs(2); err != nil {
		return err
	}
	if err := ldb.SetMaxReaders(e.slots); err != nil {
		return err
	}
	if size > 0 {
		if err := ldb.SetMapSize(size); err != nil {
			return err
		}
	}
	var flags uint
	if e.readonly {
		flags = flagReadonly
	}
	if err := ldb.Open(e.dir, flags, 0o644); err != nil {
		return err
	}
	var kv, meta lmdbDBI
	open := func(flags uint) func(*lmdbTxn) error {
		return func(txn *lmdbTxn) (err error) {
			if kv, err = txn.OpenDBI(dbKV, flags); err != nil {
				return err
			}
			meta, err = txn.OpenDBI(dbMeta, flags)
			return err
		}
	}
	if create {
		err = ldb.Update(open(flagCreate))
	} else if err = ldb.View(open(0)); isNotFound(err) {
		return fmt.Errorf("%w: it lacks the databases kv and meta", ErrDamaged)
	}
	if err != nil {
		return err
	}
	info, err := ldb.Info()
	if err != nil {
		return err
	}
	stat, err := ldb.Stat()
	if err != nil {
		return err
	}
	e.ldb, e.kv, e.meta, e.pageSize = ldb, kv, meta, int64(stat.PSize)
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
	if e.broken != nil {
		return e.broken
	}
	before := e.mapBytes.Load()
	if err := e.ldb.Close(); err != nil {
		return err
	}
	e.ldb = nil
	if err := e.open(size, false); err != nil {
		e.broken = fmt.Errorf("remap environment: %w", err)
		return e.broken
	}
	e.log.Info("remapped", "dir", e.dir, "from_bytes", before, "to_bytes", e.mapBytes.Load())
	return nil
}

// usedBytes returns how much of the map is taken.
func (e *env) usedBytes() (int64, error) {
	info, err := e.ldb.Info()
	if err != nil {
		return 0, err
	}
	return (info.LastPNO + 1) * e.pageSize, nil
}

// checkReaders frees the slots of readers whose process died, and returns how
// many there were. The caller holds writer or a slot of readers.
func (e *env) checkReaders() int {
	n, err := e.ldb.ReaderCheck()
	if err != nil {
		e.log.Warn("cannot look for stale readers", "dir", e.dir, "err", err)
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
	if e.ldb == nil {
		return nil
	}
	err := e.ldb.Close()
	e.ldb = nil
	return err
}

// writeTxn is what a write transaction may do.
type writeTxn struct {
	env *env
	txn *lmdbTxn
}

// update runs fn in a write transaction and commits it durably. The caller
// holds e.writer. Errors are the binding's, unwrapped.
func (e *env) update(fn func(*writeTxn) error) error {
	if e.ldb == nil {
		if e.broken != nil {
			return e.broken
		}
		return errEnvClosed
	}
	return e.ldb.Update(func(txn *lmdbTxn) error { return fn(&writeTxn{e, txn}) })
}

func (w *writeTxn) putMeta(key string, value []byte) error {
	return w.txn.Put(w.env.meta, []byte(key), value, 0)
}

// put stores the user's value under its tag.
func (w *writeTxn) put(key, value []byte) error {
	const keep = 1 << 20
	buf := append(append(w.env.scratch[:0], tagPlain), value...)
	if cap(buf) <= keep {
		w.env.scratch = buf
	}
	return w.txn.Put(w.env.kv, key, buf, 0)
}

// del removes key, if it is there.
func (w *writeTxn) del(key []byte) error {
	if err := w.txn.Del(w.env.kv, key, nil); err != nil && !isNotFound(err) {
		return err
	}
	return nil
}

// untag returns the user's value in what LMDB holds.
func untag(raw []byte) ([]byte, error) {
	if len(raw) == 0 || raw[0] != tagPlain {
		return nil, fmt.Errorf("%w: a value does not begin with the tag 0x%02x", ErrDamaged, tagPlain)
	}
	return raw[1:len(raw):len(raw)], nil
}

// seek moves to the first key at or after key. Key and value point into the map.
func seek(c *lmdbCursor, key []byte) (k, v []byte, err error) {
	if len(key) == 0 {
		return c.Get(nil, nil, opFirst)
	}
	k, v, err = c.Get(key, nil, opSetRange)
	runtime.KeepAlive(&key[0])
	return k, v, err
}

// firstAtOrAfter opens a cursor on the first key ≥ from (empty: of all). The
// caller closes the cursor, unless it is nil.
func firstAtOrAfter(t *Tx, from []byte) (c *lmdbCursor, key, raw []byte, err error) {
	if c, err = t.t.txn.OpenCursor(t.env.kv); err != nil {
		return nil, nil, nil, err
	}
	// LMDB takes no longer bound. Of the keys that can be, those after a longer
	// one are those after its beginning.
	cut := from[:min(len(from), txlog.MaxKey)]
	key, raw, err = seek(c, cut)
	if err == nil && bytes.Compare(key, from) < 0 {
		key, raw, err = c.Get(nil, nil, opNext)
	}
	return c, key, raw, err
}

// lastBefore opens a cursor on the last key < before (nil: of all).
func lastBefore(t *Tx, before []byte) (c *lmdbCursor, key, raw []byte, err error) {
	if before != nil {
		c, _, _, err = firstAtOrAfter(t, before)
		if err == nil {
			key, raw, err = c.Get(nil, nil, opPrev)
			return c, key, raw, err
		}
		if !isNotFound(err) {
			return c, nil, nil, err
		}
		c.Close() // what a cursor does after it found nothing differs by version
	}
	if c, err = t.t.txn.OpenCursor(t.env.kv); err != nil {
		return nil, nil, nil, err
	}
	key, raw, err = c.Get(nil, nil, opLast)
	return c, key, raw, err
}
