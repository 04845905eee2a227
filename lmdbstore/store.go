package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

// PageSize is how much of an environment is damaged at least if some of it is, in bytes.
const PageSize = mdbfile.PageSize

// Formats of an environment.
const (
	// Format is the version of the layout that is written.
	Format = 2
	// OldestFormat can still be read. A Store makes it Format when it opens or
	// installs it.
	OldestFormat = 1
)

// Errors that callers branch on.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("store is closed")
	// ErrNewerFormat means that the environment was written by a newer version.
	ErrNewerFormat = errors.New("store has a newer format")
	// ErrDamaged is wrapped by errors about a file that is not a sound
	// environment; such a file was not mapped.
	ErrDamaged = mdbfile.ErrDamaged
	// ErrInUse means that another Store, in this process or another, owns the
	// directory.
	ErrInUse = errors.New("store is in use by another process")
)

// Options configure a store. The zero value is ready to use.
type Options struct {
	// MapSize is the address space to reserve per environment at first, in
	// bytes. It costs no memory or disk and grows by itself. Default 64 GiB.
	MapSize int64
	// MaxReaders bounds concurrent read transactions. Default 512.
	MaxReaders int
	// Verify says how much of the environment Open reads before it is mapped.
	// Default VerifySampled.
	Verify Verify
	// Logger gets switches, growth and stale readers. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_store_* metrics. Default: none.
	Registerer prometheus.Registerer
}

func (o Options) validate() (Options, error) {
	if o.MapSize == 0 {
		o.MapSize = 64 << 30
	}
	if o.MaxReaders == 0 {
		o.MaxReaders = 512
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MapSize < minMapBytes {
		return o, fmt.Errorf("map size is %d bytes; allowed are %d and more", o.MapSize, minMapBytes)
	}
	if o.Verify < 0 || int(o.Verify) >= len(verifyNames) {
		return o, fmt.Errorf("verify is %d; allowed are quick, sampled and full", o.Verify)
	}
	if o.MaxReaders < 1 || o.MaxReaders > 1<<16 {
		return o, fmt.Errorf("max readers is %d; allowed are 1 to %d", o.MaxReaders, 1<<16)
	}
	return o, nil
}

// Store is the owner of a store directory: the current generation, and at most
// one that is being prepared. One process at a time may own a directory.
// Its methods may be called concurrently.
type Store struct {
	dir     string
	options Options
	lock    *os.File // flock on the directory
	metrics *metrics
	stale   atomic.Int64 // reader slots of dead processes that were cleared
	current atomic.Pointer[generation]

	switching sync.RWMutex // writes hold it shared: none may reach a generation that was replaced

	mu        sync.Mutex // guards the rest
	closed    bool
	preparing *Generation
	newest    uint64 // number of the youngest generation made

	stop    context.CancelFunc // ends installs and mints
	stopped context.Context
	work    sync.WaitGroup // installs, mints, and the removal of old generations
}

// Open opens the store in dir, creating it if need be, and removes generations
// that a crash left over. A directory that holds generations of which none, or
// a damaged one, is current is ErrDamaged: it is never replaced by an empty one.
func Open(dir string, o Options) (*Store, error) {
	o, err := o.validate()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := durable.MkdirAll(durable.OS, dir, 0o755); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{dir: dir, options: o}
	s.stopped, s.stop = context.WithCancel(context.Background())
	if s.lock, err = lockDir(dir, syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), s.lock.Close())
	}
	return s, nil
}

// lockDir takes the lock of a store directory, which ends with the process.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

func (s *Store) open() (err error) {
	create := false
	s.newest, err = readCurrent(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		create, s.newest, err = true, 1, s.checkUnused()
	}
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.dir, currentFile+".tmp")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if create {
		if err := leftovers(s.dir, 0, s.options.Logger); err != nil {
			return err
		}
	}
	if !create {
		if err := s.verify(filepath.Join(s.dir, nameOf(s.newest))); err != nil {
			return missingAsDamage(err)
		}
		if s.newest, err = s.upgradeCurrent(s.newest); err != nil {
			return err
		}
	}
	g, err := s.openGeneration(s.newest, create)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.env.close())
		}
	}()
	if create {
		err = writeCurrent(s.dir, g.number)
	} else {
		err = leftovers(s.dir, g.number, s.options.Logger)
	}
	if err != nil {
		return err
	}
	s.current.Store(g)
	s.metrics, err = newMetrics(s, s.options.Registerer)
	return err
}

// checkUnused makes sure that a directory without CURRENT holds no data.
func (s *Store) checkUnused() error {
	numbers, err := generations(s.dir)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if dir := filepath.Join(s.dir, nameOf(n)); !neverUsed(dir) {
			return fmt.Errorf("%w: %s is missing but %s holds data; write its name and a newline to %s to use it, or move it away",
				ErrDamaged, currentFile, dir, currentFile)
		}
	}
	return nil
}

// with calls fn with the current generation, again if it was replaced and closed
// before fn got hold of it.
func (s *Store) with(fn func(*generation) error) error {
	for {
		g := s.current.Load()
		err := fn(g)
		if !errors.Is(err, errEnvClosed) {
			return err
		}
		if s.current.Load() == g {
			return ErrClosed
		}
	}
}

// Generation returns the number of the current generation, which changes with
// every switch.
func (s *Store) Generation() uint64 { return s.current.Load().number }

// DataFile returns the path of the current generation's environment. LMDB writes to it
// whenever something is applied.
func (s *Store) DataFile() string { return filepath.Join(s.current.Load().dir, dataFile) }

// State returns the current generation's state.
func (s *Store) State() State { return *s.current.Load().state.Load() }

// Apply applies entries, in order, and the position they lead to, in one
// transaction, and returns once it is on stable storage. The first entry must
// link to the applied position, and each to the one before: otherwise nothing
// is applied and the error is a *txlog.DivergedError. Entries at or before the
// applied position are an error too. More than 8,192 operations or 32 MiB are
// applied in several transactions, between entries; if one of them fails those
// before it stay, and State says how far it came.
func (s *Store) Apply(entries []txlog.Entry) error {
	s.switching.RLock()
	defer s.switching.RUnlock()
	return closedAs(s.current.Load().apply(entries, s.metrics))
}

// closedAs says ErrClosed where an environment was closed with its store.
func closedAs(err error) error {
	if errors.Is(err, errEnvClosed) {
		return ErrClosed
	}
	return err
}

// View runs fn in a read transaction of the current generation. Keep it short:
// a long reader makes the file grow. fn must not call the store's methods, which
// may have to wait for it to end.
func (s *Store) View(fn func(*Tx) error) error {
	return s.with(func(g *generation) error { return g.env.view(fn) })
}

// Get appends key's value to dst. ok is false when there is no such key, or
// none of that length can be.
func (s *Store) Get(dst, key []byte) (value []byte, ok bool, err error) {
	err = s.with(func(g *generation) (err error) {
		value, ok, err = g.env.get(dst, key)
		return err
	})
	return value, ok, err
}

// until returns a context that ends with ctx or when the store closes.
func (s *Store) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.stopped, cancel)
	return ctx, func() { stop(); cancel() }
}

// working notes that work has begun for Close to wait for, unless it is too late.
func (s *Store) working() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.work.Add(1)
	}
	return !s.closed
}

// prepare takes the place for a generation that is being prepared, and a number
// for it.
func (s *Store) prepare(g *Generation) (number uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.preparing != nil {
		return 0, errors.New("another generation is being prepared; activate or discard it first")
	}
	s.preparing = g
	s.newest++
	return s.newest, nil
}

// prepared gives the place back.
func (s *Store) prepared(g *Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.preparing == g {
		s.preparing = nil
	}
}

// activate makes gen current and retires what was.
func (s *Store) activate(gen *generation) (done bool, err error) {
	s.switching.Lock()
	defer s.switching.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, ErrClosed
	}
	err = writeCurrent(s.dir, gen.number)
	if err != nil {
		err = fmt.Errorf("activate generation %d: %w", gen.number, err)
		if named, readErr := readCurrent(s.dir); readErr != nil || named != gen.number {
			return false, err
		}
		// The name changed, but may not survive a power cut: both must stay.
	}
	old := s.current.Swap(gen)
	s.preparing = nil
	s.options.Logger.Info("switched generation", "from", old.number, "to", gen.number,
		"from_pos", old.state.Load().Pos, "to_pos", gen.state.Load().Pos)
	keep := err != nil
	s.work.Go(func() {
		if err := old.retire(keep); err != nil {
			s.options.Logger.Error("cannot remove the old generation; the next start will", "generation", old.number, "err", err)
		}
	})
	return true, err
}

// Close waits for reads and mints to end and closes the store. It may be
// called twice.
func (s *Store) Close() error {
	s.mu.Lock()
	preparing := s.preparing
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.work.Wait()
	if !first {
		return nil
	}
	var err error
	if preparing != nil {
		err = preparing.Discard()
	}
	err = errors.Join(err, s.current.Load().close())
	s.metrics.unregister()
	return errors.Join(err, s.lock.Close())
}
