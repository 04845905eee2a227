// Package guard calls LMDB so that a damaged file cannot end the process.
//
// LMDB maps the file and believes what it reads: a file that got shorter is a
// SIGBUS, a page number or an offset that leads outside of the map a SIGSEGV, and
// what LMDB itself notices an assert, which aborts. Here each call into it saves
// where it came from (sigsetjmp); the handlers of the two signals and of LMDB's
// asserts return there (siglongjmp), and the call fails with a *Fault. Values are
// copied out within the call, so that Go code never touches the map.
//
// The idea is that of PostgreSQL's and SQLite's advice for mapped files and of
// libwayland's wl_shm_buffer_begin_access, which maps zeros under the reader
// instead; with LMDB zeros would be read as a page, and lead elsewhere.
//
// After a Fault an environment is to be given up: of a write transaction nothing
// may be called any more, of a read transaction only Reset and Abort. A call that
// takes LMDB's locks or changes its memory leaves both in doubt when it stops: such
// an environment is not closed, because what is half freed would be freed twice, and
// a lock that a thread holds must stay mapped as long as the thread lives. The
// process keeps some memory, the map of the lock file and a descriptor of it for
// each; Kept counts them. No environment is used after that, so that it is at most
// one for each damage.
//
// The handlers are installed after Go's, which get every signal that is not from
// within such a call. That is what os/signal asks of handlers in C.
//
// LMDB itself is linked by the binding that lmdbstore imports; this package only
// knows its C interface.
package guard

/*
#include <stdlib.h>
#include "guard.h"

#cgo noescape qs_txn_renew
#cgo nocallback qs_txn_renew
#cgo noescape qs_txn_reset
#cgo nocallback qs_txn_reset
#cgo noescape qs_sight_take
#cgo nocallback qs_sight_take
#cgo noescape qs_get
#cgo nocallback qs_get
#cgo noescape qs_put
#cgo nocallback qs_put
#cgo noescape qs_around
#cgo nocallback qs_around
#cgo noescape qs_swap
#cgo nocallback qs_swap
#cgo noescape qs_del
#cgo nocallback qs_del
#cgo noescape qs_cursor_get
#cgo nocallback qs_cursor_get
#cgo noescape qs_cursor_part
#cgo nocallback qs_cursor_part
*/
import "C"

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// Code is what a call of LMDB returned: one of its own codes (negative), or an
// errno.
type Code int

// Fault says that a call could not go on, because of what the file holds.
type Fault struct {
	Why string
	// Stale is of a transaction that could not begin, because what the lock file says was the
	// last one and what the data file says do not belong together.
	Stale bool
}

func (f *Fault) Error() string { return "LMDB stopped: " + f.Why }

// Calls makes errors of codes; the binding knows their names.
type Calls struct {
	Error func(op string, code Code) error
}

func (c *Calls) err(op string, code C.int) error {
	switch code {
	case 0:
		return nil
	case C.QS_FAULT, C.QS_ASSERT:
		var text [256]C.char
		C.qs_why(&text[0], C.size_t(len(text)))
		return &Fault{Why: C.GoString(&text[0])}
	}
	return c.Error(op, Code(code))
}

var install = sync.OnceFunc(func() { C.qs_install() })

// Env is an open environment. Its methods may be called concurrently, except
// for Close.
type Env struct {
	calls *Calls
	p     unsafe.Pointer // nil: closed, or given up
	fd    int
	page  int               // size of a page, in bytes
	names [C.QS_DBS]*C.char // of databases, by handle
	doubt atomic.Bool       // LMDB stopped where its locks and memory are in doubt
}

var (
	errGone    = &Fault{Why: "the environment was closed or given up before"}
	errInDoubt = &Fault{Why: "the environment is given up, because LMDB stopped in the middle of an earlier call"}
)

var kept atomic.Int64

// Kept returns how many environments LMDB could not be made to close, so that the
// process keeps what they took.
func Kept() int64 { return kept.Load() }

// err is Calls.err of a call that leaves the environment in doubt if it stops.
func (e *Env) err(op string, code C.int) error {
	err := e.calls.err(op, code)
	if _, fault := err.(*Fault); fault {
		e.doubt.Store(true)
	}
	return err
}

// Options of an environment.
type Options struct {
	DBs, Readers int
	MapSize      int64 // 0: as the file says
	Flags        uint
}

// DBI is the handle of a database.
type DBI uint32

// Open opens the environment in dir.
func (c *Calls) Open(dir string, o Options) (*Env, error) {
	install()
	e := &Env{calls: c}
	if err := c.err("mdb_env_create", C.qs_env_create(&e.p, C.uint(o.DBs), C.uint(o.Readers), C.size_t(o.MapSize))); err != nil {
		return nil, err
	}
	path := C.CString(dir)
	defer C.free(unsafe.Pointer(path))
	const noTLS = 0x200000 // read transactions are ours, not a thread's
	var fd C.int
	if err := e.err("mdb_env_open", C.qs_env_open(e.p, path, C.uint(o.Flags)|noTLS, &fd)); err != nil {
		_ = e.Close() // says no more
		return nil, err
	}
	e.fd = int(fd)
	info, err := e.Info()
	if err != nil {
		_ = e.Close() // says no more
		return nil, err
	}
	e.page = info.PageSize
	return e, nil
}

// Info describes an environment.
type Info struct {
	MapSize  int64
	LastPage int64
	LastTxn  uint64
	PageSize int
}

// Info returns what the newest transaction left.
func (e *Env) Info() (Info, error) {
	if e.p == nil {
		return Info{}, errGone
	}
	var i C.qs_info
	err := e.calls.err("mdb_env_info", C.qs_env_info(e.p, &i))
	return Info{int64(i.map_size), int64(i.last_page), uint64(i.last_txn), int(i.page_size)}, err
}

// CheckReaders frees the slots of dead processes and returns how many.
func (e *Env) CheckReaders() (int, error) {
	if e.p == nil {
		return 0, errGone
	}
	var dead C.int
	err := e.err("mdb_reader_check", C.qs_env_check_readers(e.p, &dead))
	return int(dead), err
}

// FD returns LMDB's descriptor of the data file, -1 once LMDB closed it.
func (e *Env) FD() int { return e.fd }

// Close closes the environment, in which no transaction is left, or gives it up if
// it is in doubt. Either is done once; after a Fault of Close, too, the environment
// is gone.
func (e *Env) Close() error {
	p := e.p
	if e.p = nil; p == nil {
		return errGone
	}
	if e.doubt.Load() {
		kept.Add(1)
		return errInDoubt
	}
	e.fd = -1
	err := e.err("mdb_env_close", C.qs_env_close(p))
	if e.doubt.Load() {
		kept.Add(1)
	}
	return err
}

// Txn is a transaction. One goroutine at a time may use it; a write transaction
// stays on one thread.
type Txn struct {
	calls *Calls
	env   *Env
	write bool
	p     unsafe.Pointer
	sees  *C.qs_sight // of a read transaction; by itself because C gets to see it
}

// err is Calls.err of a call that changes something of LMDB's if t is a write
// transaction.
func (t *Txn) err(op string, code C.int) error {
	if t.write {
		return t.env.err(op, code)
	}
	return t.calls.err(op, code)
}

// Begin starts a transaction.
func (e *Env) Begin(flags uint) (*Txn, error) {
	if e.p == nil {
		return nil, errGone
	}
	const readOnly = 0x20000
	t := &Txn{calls: e.calls, env: e, write: flags&readOnly == 0}
	if err := e.err("mdb_txn_begin", C.qs_txn_begin(e.p, C.uint(flags), &t.p)); err != nil {
		return nil, err
	}
	if t.write {
		return t, nil
	}
	t.sees = &C.qs_sight{page: C.size_t(e.page)}
	if err := t.look(); err != nil {
		_ = t.Abort() // says no more
		return nil, err
	}
	return t, nil
}

// Renew starts a read transaction again after Reset. After an error it is to be reset
// or aborted.
func (t *Txn) Renew() error {
	if err := t.env.err("mdb_txn_renew", C.qs_txn_renew(t.p)); err != nil {
		return err
	}
	return t.look()
}

// looks is how often a read transaction is begun again when writers overwrite its meta page
// before it could be looked at, which takes two of their transactions.
const looks = 1000

// look finds out what a read transaction that has begun sees, so that searches need not
// believe what they come by.
func (t *Txn) look() error {
	for i := range looks {
		sure := C.int(1)
		if i > 0 { // begun since: the next one's end may take long, and only then the one after begins
			sure = 0
		}
		rc := C.qs_sight_take(t.p, t.sees, sure)
		if rc != C.QS_AGAIN {
			return t.calls.err("look at a meta page", rc)
		}
		if err := t.Reset(); err != nil {
			return err
		}
		if err := t.env.err("mdb_txn_renew", C.qs_txn_renew(t.p)); err != nil {
			return err
		}
	}
	return &Fault{Why: "the meta page of a transaction is that of another", Stale: true}
}

// tree returns a database as t sees it. A write transaction believes LMDB: pages are checked
// before LMDB takes them.
func (t *Txn) tree(dbi DBI) C.qs_tree {
	tree := C.qs_tree{dbi: C.uint(dbi)}
	if !t.write && dbi < C.QS_DBS && t.env.names[dbi] != nil {
		tree.name, tree.sight = t.env.names[dbi], t.sees
	}
	return tree
}

// Reset ends a read transaction but keeps it for Renew.
func (t *Txn) Reset() error { return t.calls.err("mdb_txn_reset", C.qs_txn_reset(t.p)) }

// Abort ends a transaction and frees it.
func (t *Txn) Abort() error { return t.err("mdb_txn_abort", C.qs_txn_abort(t.p)) }

// Commit makes a write transaction durable and frees it, also when it fails.
func (t *Txn) Commit() error { return t.err("mdb_txn_commit", C.qs_txn_commit(t.p)) }

// ID returns the id of the transaction that t sees, or that it is.
func (t *Txn) ID() uint64 { return uint64(C.qs_txn_id(t.p)) }

// OpenDBI returns the handle of a database.
func (t *Txn) OpenDBI(name string, flags uint) (DBI, error) {
	n := cName(name)
	var dbi C.uint
	err := t.env.err("mdb_dbi_open", C.qs_open_dbi(t.p, n, C.uint(flags), &dbi))
	if err == nil && dbi < C.QS_DBS {
		t.env.names[dbi] = n
	}
	return DBI(dbi), err
}

var names sync.Map // of databases, string to *C.char: few, and for good

func cName(name string) *C.char {
	if n, ok := names.Load(name); ok {
		return n.(*C.char)
	}
	n, _ := names.LoadOrStore(name, C.CString(name))
	return n.(*C.char)
}

// Entries returns the number of pairs in a database.
func (t *Txn) Entries(dbi DBI) (uint64, error) {
	var n C.uint64_t
	err := t.err("mdb_stat", C.qs_entries(t.p, t.tree(dbi), &n))
	return uint64(n), err
}

const (
	// Long is the size in bytes up to which values are copied without being asked for.
	Long = 64 << 10
	// beside is the same where only keys were asked for.
	beside = 4 << 10
)

// Size returns the size of the value of key.
func (t *Txn) Size(dbi DBI, key []byte) (int, error) {
	var size C.size_t
	rc := C.qs_get(t.p, t.tree(dbi), unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key)), nil, 0, &size)
	return int(size), t.err("mdb_get", rc)
}

// Get returns a copy of the value of key, in buf if it has the room. If room is not nil
// it is asked before more memory than Long is taken, and its error returned.
func (t *Txn) Get(dbi DBI, key, buf []byte, room func(bytes int) error) ([]byte, error) {
	tree := t.tree(dbi)
	for buf = buf[:cap(buf)]; ; {
		var size C.size_t
		rc := C.qs_get(t.p, tree, unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key)),
			unsafe.Pointer(unsafe.SliceData(buf)), C.size_t(len(buf)), &size)
		if rc != 0 {
			return nil, t.err("mdb_get", rc)
		}
		if int(size) <= len(buf) {
			return buf[:size:size], nil
		}
		if size > maxValue {
			return nil, &Fault{Why: "a value is longer than values can be"}
		}
		if room != nil && size > Long {
			if err := room(int(size)); err != nil {
				return nil, err
			}
		}
		buf = make([]byte, size)
	}
}

// maxValue is more than a sound file holds: the log's values are of 16 MiB at most.
// A damaged length must not cost memory and seconds.
const maxValue = 32 << 20

// Pair is a key and its value. There is none where the key is empty.
type Pair struct {
	Key, Value []byte
	Long       bool // Value is not there, because it has more than Long bytes
}

// Around returns copies of the first pair at or after key and of the one before
// that, in buf if it has the room, and the buffer that they are in.
func (t *Txn) Around(dbi DBI, key, buf []byte) (next, last Pair, used []byte, err error) {
	tree := t.tree(dbi)
	for buf = buf[:cap(buf)]; ; {
		var n, l C.qs_pair
		rc := C.qs_around(t.p, tree, unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key)),
			unsafe.Pointer(unsafe.SliceData(buf)), C.size_t(len(buf)), Long, &n, &l)
		if rc != 0 {
			return Pair{}, Pair{}, nil, t.err("mdb_cursor_get", rc)
		}
		if n.value > maxValue || l.value > maxValue || n.key > maxValue || l.key > maxValue {
			return Pair{}, Pair{}, nil, &Fault{Why: "a pair is longer than pairs can be"}
		}
		next.Long, last.Long = n.value > Long, l.value > Long
		if next.Long {
			n.value = 0
		}
		if last.Long {
			l.value = 0
		}
		if all := n.key + n.value + l.key + l.value; all > C.size_t(len(buf)) {
			buf = make([]byte, max(1024, 2*all))
			continue
		}
		rest := buf
		cut := func(n C.size_t) (part []byte) {
			part, rest = rest[:n:n], rest[n:]
			return part
		}
		next.Key, next.Value = cut(n.key), cut(n.value)
		last.Key, last.Value = cut(l.key), cut(l.value)
		return next, last, buf, nil
	}
}

// Put sets the value of key.
func (t *Txn) Put(dbi DBI, key, value []byte) error {
	return t.err("mdb_put", C.qs_put(t.p, C.uint(dbi), unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key)),
		unsafe.Pointer(unsafe.SliceData(value)), C.size_t(len(value))))
}

// Swap sets the value of key, and returns a copy of the one before, in buf if it
// has the room. replaced is false if there was none.
func (t *Txn) Swap(dbi DBI, key, value, buf []byte) (before []byte, replaced bool, err error) {
	for buf = buf[:cap(buf)]; ; {
		var size C.size_t
		var there C.int
		rc := C.qs_swap(t.p, C.uint(dbi), unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key)),
			unsafe.Pointer(unsafe.SliceData(value)), C.size_t(len(value)),
			unsafe.Pointer(unsafe.SliceData(buf)), C.size_t(len(buf)), &size, &there)
		switch {
		case rc == 0 && there == 0:
			return nil, false, nil
		case rc == 0:
			return buf[:size:len(buf)], true, nil
		case int(size) <= len(buf): // not what it failed for
			return nil, false, t.err("mdb_put", rc)
		case size > maxValue:
			return nil, false, &Fault{Why: "a value is longer than values can be"}
		}
		buf = make([]byte, max(4096, size))
	}
}

// Del removes key.
func (t *Txn) Del(dbi DBI, key []byte) error {
	return t.err("mdb_del", C.qs_del(t.p, C.uint(dbi), unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key))))
}

// Cursor steps through a database.
type Cursor struct {
	// KeysOnly leaves values of more than 4 KiB where they are: Get returns nil for them,
	// and Part what they are.
	KeysOnly bool
	// Room, if not nil, is asked before the buffer grows by more than Long, and its error
	// is returned.
	Room func(bytes int) error

	calls *Calls
	p     unsafe.Pointer
	tree  C.qs_tree
	place *C.qs_place // where the cursor is; by itself because C gets to see it
	buf   []byte
}

// OpenCursor opens a cursor, to be closed before the transaction ends.
func (t *Txn) OpenCursor(dbi DBI) (*Cursor, error) {
	c := &Cursor{calls: t.calls, tree: t.tree(dbi), place: new(C.qs_place)}
	if err := t.calls.err("mdb_cursor_open", C.qs_cursor_open(t.p, C.uint(dbi), &c.p)); err != nil {
		return nil, err
	}
	return c, nil
}

// Get moves the cursor by op, to key if op takes one, and returns what is there,
// valid until the next call.
func (c *Cursor) Get(key []byte, op uint) (k, v []byte, err error) {
	most := C.size_t(maxValue)
	if c.KeysOnly {
		most = beside
	}
	for {
		var keySize, valueSize C.size_t
		rc := C.qs_cursor_get(c.p, c.tree, c.place, C.int(op), unsafe.Pointer(unsafe.SliceData(key)), C.size_t(len(key)),
			unsafe.Pointer(unsafe.SliceData(c.buf)), C.size_t(len(c.buf)), most, &keySize, &valueSize)
		switch {
		case rc != 0:
			return nil, nil, c.calls.err("mdb_cursor_get", rc)
		case keySize > maxValue || valueSize > maxValue:
			return nil, nil, &Fault{Why: "a value is longer than values can be"}
		}
		long := valueSize > most
		if long {
			valueSize = 0
		}
		n, all := int(keySize), int(keySize+valueSize)
		if all <= len(c.buf) {
			if v = c.buf[n:all:all]; long {
				v = nil
			}
			return c.buf[:n:n], v, nil
		}
		size := max(4096, 2*all)
		if all > Long {
			size = all
			if c.Room != nil {
				if err := c.Room(size - len(c.buf)); err != nil {
					return nil, nil, err
				}
			}
		}
		const getCurrent = 4
		op, key, c.buf = getCurrent, nil, make([]byte, size)
	}
}

// Part copies what of the value under the cursor stands from off on, as much as there is
// room for.
func (c *Cursor) Part(off int, to []byte) (int, error) {
	var n C.size_t
	rc := C.qs_cursor_part(c.p, c.tree, C.size_t(off), unsafe.Pointer(unsafe.SliceData(to)), C.size_t(len(to)), &n)
	return int(n), c.calls.err("mdb_cursor_get", rc)
}

// Close closes the cursor.
func (c *Cursor) Close() error { return c.calls.err("mdb_cursor_close", C.qs_cursor_close(c.p)) }
