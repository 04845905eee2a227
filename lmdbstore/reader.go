package lmdbstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// foreignReaders bounds a Reader's concurrent read transactions.
const foreignReaders = 64

// ReaderOptions configure a reader. The zero value is ready to use.
type ReaderOptions struct {
	// Unchecked leaves the checksums of the values out: what a damaged disk made
	// of a value is then returned as it is.
	Unchecked bool
}

// Reader reads a store that another process owns, and follows its switches.
// Its methods may be called concurrently.
type Reader struct {
	dir     string
	options ReaderOptions
	current string // path of CURRENT
	stale   atomic.Int64

	mu     sync.Mutex // guards the rest
	closed bool
	env    *env
	seen   stamp
	old    sync.WaitGroup // environments that were switched away from
}

// stamp tells one CURRENT from the next without reading it.
type stamp struct {
	ino          uint64
	ctime, mtime unix.Timespec
}

// OpenReader opens the store in dir for reading. It needs write permission on
// the lock file, as every LMDB reader does. The process that owns the store
// reads through its Store instead.
func OpenReader(dir string, o ReaderOptions) (*Reader, error) {
	r := &Reader{dir: dir, options: o, current: filepath.Join(dir, currentFile)}
	if _, err := r.follow(); err != nil {
		return nil, fmt.Errorf("open reader: %w", err)
	}
	return r, nil
}

// follow returns the environment that is current.
func (r *Reader) follow() (*env, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	// A generation may be replaced and removed between our looking and opening;
	// then CURRENT has changed, and the next look finds the one after.
	for try := 0; ; try++ {
		var st unix.Stat_t
		if err := unix.Stat(r.current, &st); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: r.current, Err: err}
		}
		now := stamp{st.Ino, st.Ctim, st.Mtim}
		if r.env != nil && now == r.seen {
			return r.env, nil
		}
		e, err := r.open()
		if err == nil {
			if old := r.env; old != nil {
				r.old.Go(func() { _ = old.close() }) // it was read-only: nothing to lose
			}
			r.env, r.seen = e, now
			return e, nil
		}
		const tries = 10
		if !errors.Is(err, fs.ErrNotExist) || try == tries {
			return nil, err
		}
	}
}

func (r *Reader) open() (*env, error) {
	number, err := readCurrent(r.dir)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.dir, nameOf(number))
	format, err := inspectLive(filepath.Join(dir, dataFile))
	if err != nil {
		return nil, err
	}
	return openEnv(dir, envOptions{
		maxReaders: foreignReaders, slots: readerSlots(foreignReaders), readonly: true,
		values: encoding{plain: format == 1, unchecked: r.options.Unchecked},
		log:    slog.New(slog.DiscardHandler), stale: &r.stale,
	})
}

// with calls fn with the current environment, again if it was replaced and
// closed before fn got hold of it.
func (r *Reader) with(fn func(*env) error) error {
	for {
		e, err := r.follow()
		if err != nil {
			return err
		}
		if err := fn(e); !errors.Is(err, errEnvClosed) {
			return err
		}
	}
}

// View runs fn in a read transaction of the generation that is current. fn must
// not call the reader's methods, which may have to wait for it to end.
func (r *Reader) View(fn func(*Tx) error) error {
	return r.with(func(e *env) error { return e.view(fn) })
}

// Get appends key's value to dst.
func (r *Reader) Get(dst, key []byte) (value []byte, ok bool, err error) {
	err = r.with(func(e *env) (err error) {
		value, ok, err = e.get(dst, key)
		return err
	})
	return value, ok, err
}

// Close waits for reads to end and releases the reader. It may be called twice.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.old.Wait()
	return r.env.close()
}
