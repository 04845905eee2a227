package lmdbstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/txlog"
)

// Format is the version of the environment's layout.
const Format = 1

// Errors that callers branch on.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("store is closed")
	// ErrNewerFormat means that the environment was written by a newer version.
	ErrNewerFormat = errors.New("store has a newer format")
	// ErrDamaged is wrapped by errors about a file that is not a sound
	// environment; such a file was not mapped.
	ErrDamaged = errors.New("file is damaged")
)

// Options configure a store. The zero value is ready to use.
type Options struct {
	// MapSize is the address space to reserve per environment at first, in
	// bytes. It costs no memory or disk and grows by itself. Default 64 GiB.
	MapSize int64
	// MaxReaders bounds concurrent read transactions. Default 512.
	MaxReaders int
	// Logger gets switches, growth and stale readers. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_store_* metrics. Default: none.
	Registerer prometheus.Registerer
}

// State is where an environment stands.
type State struct {
	Dataset txlog.DatasetID // zero while nothing was applied
	Pos     txlog.Pos
	Time    time.Time // the writer's clock in the entry at Pos
}

// Store is the owner of a store directory: the current generation, and at most
// one that is being prepared. One process at a time may own a directory.
// Its methods may be called concurrently.
type Store struct{}

// Open opens the store in dir, creating it if need be, and removes generations
// that a crash left over.
func Open(dir string, o Options) (*Store, error) { panic("unwritten") }

// State returns the current generation's state.
func (s *Store) State() State { panic("unwritten") }

// Apply applies entries, in order, and the position they lead to, in one
// transaction, and returns once it is on stable storage. The first entry must
// link to the applied position: otherwise nothing is applied and the error is a
// *txlog.DivergedError. Entries at or before the applied position are an error
// too.
func (s *Store) Apply(entries []txlog.Entry) error { panic("unwritten") }

// View runs fn in a read transaction of the current generation. Keep it short:
// a long reader makes the file grow.
func (s *Store) View(fn func(*Tx) error) error { panic("unwritten") }

// Get appends key's value to dst. ok is false when there is no such key.
func (s *Store) Get(dst, key []byte) (value []byte, ok bool, err error) { panic("unwritten") }

// SnapshotInfo says what a minted file is.
type SnapshotInfo struct {
	State
	Pairs  uint64 // of the user
	Size   int64  // bytes
	Format int
}

// Mint writes a canonical snapshot of the current generation. It calls begin
// once the result has been measured, and then writes exactly Size bytes, front
// to back, to the writer that begin returns. If the environment had to be
// remapped meanwhile begin is called again and the writing starts over.
// Writes to the store go on. Damage that it comes across is ErrDamaged.
func (s *Store) Mint(ctx context.Context, begin func(SnapshotInfo) (io.Writer, error)) (SnapshotInfo, error) {
	panic("unwritten")
}

// Install makes a new generation from a snapshot file that has been verified.
// It copies the file (by reflink where the file system can), fsyncs, opens the
// copy, and checks its dataset, position and format. The file itself is left
// alone. The generation takes Apply, and replaces the current one at Activate.
// progress, if not nil, is called with the bytes copied so far.
func (s *Store) Install(ctx context.Context, file string, progress func(done int64)) (*Generation, error) {
	panic("unwritten")
}

// Close waits for reads and mints to end and closes the store. It may be
// called twice.
func (s *Store) Close() error { panic("unwritten") }

// Generation is a prepared environment that is not current yet.
type Generation struct{}

// State returns the generation's state.
func (g *Generation) State() State { panic("unwritten") }

// Apply is Store.Apply on this generation.
func (g *Generation) Apply(entries []txlog.Entry) error { panic("unwritten") }

// Activate makes the generation current, durably and atomically. Readers of the
// old one finish; then it is closed and removed.
func (g *Generation) Activate() error { panic("unwritten") }

// Discard removes the generation. After Activate it does nothing.
func (g *Generation) Discard() error { panic("unwritten") }

// Tx is a read transaction. It sees one state, whatever is applied meanwhile.
// One goroutine may use it at a time; it ends when View's fn returns.
type Tx struct{}

// State returns the state that the transaction sees.
func (t *Tx) State() (State, error) { panic("unwritten") }

// Pairs returns the number of the user's pairs.
func (t *Tx) Pairs() (uint64, error) { panic("unwritten") }

// Get returns key's value, which points into the map: it is valid until the
// transaction ends and must not be written to.
func (t *Tx) Get(key []byte) (value []byte, ok bool, err error) { panic("unwritten") }

// Range selects pairs by key. The zero value selects all, ascending.
type Range struct {
	Prefix  []byte // only keys that begin so
	Start   []byte // only keys ≥ Start
	End     []byte // only keys < End; nil: no bound
	Reverse bool   // descending
	Limit   int    // at most so many pairs; 0: no limit
}

// Scan calls fn with the pairs of r in order, until fn returns an error, which
// it returns (ErrStop: nil). Key and value are valid during the call only.
func (t *Tx) Scan(r Range, fn func(key, value []byte) error) error { panic("unwritten") }

// ErrStop ends a Scan early without an error.
var ErrStop = errors.New("stop")

// Reader reads a store that another process owns, and follows its switches.
// Its methods may be called concurrently.
type Reader struct{}

// OpenReader opens the store in dir for reading. It needs write permission on
// the lock file, as every LMDB reader does.
func OpenReader(dir string) (*Reader, error) { panic("unwritten") }

// View runs fn in a read transaction of the generation that is current.
func (r *Reader) View(fn func(*Tx) error) error { panic("unwritten") }

// Get appends key's value to dst.
func (r *Reader) Get(dst, key []byte) (value []byte, ok bool, err error) { panic("unwritten") }

// Close releases the reader. It may be called twice.
func (r *Reader) Close() error { panic("unwritten") }

// CheckReport is what Check and CheckFile found.
type CheckReport struct {
	SnapshotInfo
	Pages     uint64 // in the file
	FreePages uint64 // listed as reusable
}

// Check verifies the structure of the current generation of the store in dir,
// which no process has open: every page reachable once, in bounds, in key
// order, counts as recorded. The file is read, never mapped, so damage is an
// error (ErrDamaged) and not a crash.
func Check(ctx context.Context, dir string) (CheckReport, error) { panic("unwritten") }

// CheckFile is Check of one environment file, such as a snapshot.
func CheckFile(ctx context.Context, file string) (CheckReport, error) { panic("unwritten") }
