package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	currentFile = "CURRENT"
	dataFile    = "data.mdb"
	lockFile    = "lock.mdb"
)

var generationName = regexp.MustCompile(`^gen-[0-9]{6,}$`)

// generation is an open environment of a store.
type generation struct {
	number uint64
	dir    string
	env    *env
	state  atomic.Pointer[State]
	stands stands // of the entries applied since it was opened, and where it was

	evidence atomic.Bool // it is kept once it is replaced
}

func nameOf(number uint64) string { return fmt.Sprintf("gen-%06d", number) }

func numberOf(name string) (uint64, bool) {
	if !generationName.MatchString(name) {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "gen-"), 10, 64)
	return n, err == nil && n > 0 && nameOf(n) == name
}

// readCurrent returns the number of the generation that CURRENT names, or
// fs.ErrNotExist.
func readCurrent(dir string) (uint64, error) {
	path := filepath.Join(dir, currentFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	name, ok := strings.CutSuffix(string(text), "\n")
	number, valid := numberOf(name)
	if !ok || !valid {
		return 0, fmt.Errorf("%w: %s holds %.40q and not the name of a generation", ErrDamaged, path, text)
	}
	return number, nil
}

func writeCurrent(dir string, number uint64) error {
	return durable.WriteFile(durable.OS, filepath.Join(dir, currentFile), []byte(nameOf(number)+"\n"), 0o644)
}

// generations returns the numbers of the generations in dir, whole or not.
func generations(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		if n, ok := numberOf(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// neverUsed reports whether the generation in dir is what a crash left of making
// a store: no entry was ever applied to it.
func neverUsed(dir string) bool {
	state, _, err := inspect(filepath.Join(dir, dataFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if errors.Is(err, mdbfile.ErrNoSuchDB) {
		return true // its first transaction, which makes them, never ended
	}
	if err != nil {
		info, statErr := os.Stat(filepath.Join(dir, dataFile))
		return statErr == nil && info.Size() == 0
	}
	return state.Pos.IsZero()
}

// openGeneration opens a generation that is there, or makes one.
func (s *Store) openGeneration(number uint64, create bool) (*generation, error) {
	g := &generation{number: number, dir: filepath.Join(s.dir, nameOf(number))}
	if create {
		if err := durable.MkdirAll(durable.OS, g.dir, 0o755); err != nil {
			return nil, err
		}
	} else if _, _, err := inspect(filepath.Join(g.dir, dataFile)); err != nil {
		return nil, missingAsDamage(err)
	}
	env, err := openEnv(g.dir, envOptions{
		mapBytes: s.options.MapSize, maxReaders: s.options.MaxReaders, slots: readerSlots(s.options.MaxReaders),
		create: create, log: s.options.Logger, stale: &s.stale,
	})
	if err != nil {
		return nil, err
	}
	g.env = env
	if err := g.readState(); err != nil {
		return nil, errors.Join(err, env.close())
	}
	if err := errors.Join(unclean(g.dir), durable.Sync(durable.OS, g.dir)); err != nil {
		return nil, errors.Join(err, env.close())
	}
	return g, nil
}

// missingAsDamage says that a file which CURRENT leads to has to be there.
func missingAsDamage(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// readerSlots sizes LMDB's reader table: ours, and as many for other processes.
func readerSlots(ours int) int { return 2*ours + 64 }

func (g *generation) readState() error { return g.readStateBy(&g.env.writer) }

// readStateBy is readState for who may hold the environment's writer already.
func (g *generation) readStateBy(writer sync.Locker) error {
	return g.env.viewBy(writer, func(tx *Tx) error {
		state, err := tx.State()
		if err != nil {
			return fmt.Errorf("generation %s: %w", g.dir, err)
		}
		g.state.Store(&state)
		g.stands.add(stand{state.Pos, state.Digest})
		return nil
	})
}

// close closes the generation and notes that this was done.
func (g *generation) close() error {
	if err := g.env.close(); err != nil || g.env.injury.get() != nil {
		return err
	}
	if err := markClean(g.dir); err != nil {
		// On a full disk, say. Nothing depends on it but how long the next start takes.
		g.env.log.Warn("could not note that the store was closed in order: the next start will read all of it", "dir", g.dir, "err", err)
	}
	return nil
}

// retire closes the generation once its readers have ended, and deletes it. One
// that was damaged, or holds what it should not, is evidence.
func (g *generation) retire(keep bool) error {
	if err := g.env.close(); err != nil || keep {
		return err
	}
	if g.evidence.Load() || g.env.injury.get() != nil {
		_, err := keepEvidence(filepath.Dir(g.dir), g.number)
		return err
	}
	return durable.RemoveAll(durable.OS, g.dir)
}

// Generation is a prepared environment that is not current yet.
type Generation struct {
	store *Store

	mu  sync.Mutex  // guards gen
	gen *generation // nil once it was activated or discarded
}

var errNotPrepared = errors.New("generation is no longer being prepared: it was activated or discarded")

// Install makes a new generation from a snapshot file that has been verified.
// It copies the file (by reflink where the file system can), fsyncs, and opens
// the copy. If want is not nil the copy is first compared with it: ErrUnexpected.
// The file itself is left alone. The generation takes Apply, and replaces the
// current one at Activate. progress, if not nil, is called with the bytes copied
// so far. One generation at a time can be prepared.
func (s *Store) Install(ctx context.Context, file string, want *Expected, progress func(done int64)) (*Generation, error) {
	if !s.working() {
		return nil, ErrClosed
	}
	defer s.work.Done()
	g := &Generation{store: s}
	number, err := s.prepare(g)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.until(ctx)
	defer cancel()
	gen, err := s.install(ctx, file, number, want, progress)
	if err != nil {
		s.prepared(g)
		if s.stopped.Err() != nil {
			return nil, ErrClosed
		}
		return nil, fmt.Errorf("install %s: %w", file, err)
	}
	g.gen = gen
	return g, nil
}

func (s *Store) install(ctx context.Context, file string, number uint64, want *Expected, progress func(int64)) (*generation, error) {
	dir := filepath.Join(s.dir, nameOf(number))
	if err := durable.MkdirAll(durable.OS, dir, 0o755); err != nil {
		return nil, err
	}
	gen, err := s.copyAndOpen(ctx, file, number, want, progress)
	if err != nil {
		return nil, errors.Join(err, durable.RemoveAll(durable.OS, dir))
	}
	return gen, nil
}

func (s *Store) copyAndOpen(ctx context.Context, file string, number uint64, want *Expected, progress func(int64)) (*generation, error) {
	target := filepath.Join(s.dir, nameOf(number), dataFile)
	copied := copyFile
	if want != nil {
		copied = want.copyFile
	}
	if err := copied(ctx, target, file, progress); err != nil {
		return nil, err
	}
	if err := upgradeCopy(ctx, target); err != nil {
		return nil, err
	}
	gen, err := s.openGeneration(number, false)
	if err != nil {
		return nil, err
	}
	if gen.state.Load().Pos.IsZero() {
		return nil, errors.Join(fmt.Errorf("%w: it holds no position", ErrDamaged), gen.env.close())
	}
	return gen, nil
}

// State returns the generation's state, zero after Discard.
func (g *Generation) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gen == nil {
		return State{}
	}
	return *g.gen.state.Load()
}

// Apply is Store.Apply on this generation.
func (g *Generation) Apply(entries []txlog.Entry) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gen == nil {
		return errNotPrepared
	}
	return closedAs(g.gen.apply(entries, g.store.metrics))
}

// Activate makes the generation current, durably and atomically. Readers of the
// old one finish; then it is closed and removed, which Activate does not wait
// for. After an error the generation is as it was, unless State of the store
// says that it is current: then only its surviving a power cut is uncertain.
func (g *Generation) Activate() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gen == nil {
		return errNotPrepared
	}
	done, err := g.store.activate(g.gen)
	if done {
		g.gen = nil
	}
	return err
}

// Discard removes the generation. After Activate it does nothing.
func (g *Generation) Discard() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gen == nil {
		return nil
	}
	gen := g.gen
	g.gen = nil
	defer g.store.prepared(g)
	// Damaged or not it is a copy of a snapshot, and no evidence: what there is of that is
	// of the environment that is to be replaced.
	return errors.Join(gen.env.close(), durable.RemoveAll(durable.OS, gen.dir))
}

// leftovers removes what a crash left in dir beside the current generation.
func leftovers(dir string, current uint64, log *slog.Logger) error {
	numbers, err := generations(dir)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n == current {
			continue
		}
		log.Info("removing a generation that a crash left over", "generation", n)
		if err := durable.RemoveAll(durable.OS, filepath.Join(dir, nameOf(n))); err != nil {
			return fmt.Errorf("remove left-over generation: %w", err)
		}
	}
	return nil
}
