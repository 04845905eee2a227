package lmdbstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errBroken is wrapped by what says why an environment that was closed to be
// remapped could not be opened again. It is tried again whenever it is needed:
// what was missing may be there, such as file descriptors.
var errBroken = errors.New("remap environment")

// needsHealing reports whether an error is about an environment that has to be
// opened again. LMDB refuses everything after it failed to write a meta page.
func needsHealing(err error) bool { return errors.Is(err, errBroken) || isPanic(err) }

// heal opens a broken environment again, unless somebody did since epoch. The
// caller holds e.writer.
func (e *env) heal(epoch uint64) error {
	if err := e.injury.get(); err != nil {
		return err
	}
	e.healed = true
	return e.remap(e.mapBytes.Load(), epoch)
}

// healBy is heal for a reader.
func (e *env) healBy(epoch uint64, writer sync.Locker) error {
	writer.Lock()
	defer writer.Unlock()
	return e.heal(epoch)
}

// recover heals what a write transaction met, and what a reader had to heal.
// The generation's state is read again: of a commit that failed at the very end
// nobody else knows whether it counts. The caller holds the environment's writer.
func (g *generation) recover(why error) error {
	if needsHealing(why) {
		if err := g.env.heal(g.env.readers.current()); err != nil {
			return err
		}
	}
	if !g.env.healed {
		return nil
	}
	before := g.state.Load().Pos
	if err := g.readStateBy(new(sync.Mutex)); err != nil {
		return err
	}
	if now := g.state.Load(); now.Pos != before { // nobody knows what is in between
		g.stands.forget()
		g.stands.add(stand{now.Pos, now.Digest})
	}
	g.env.healed = false
	return nil
}

const (
	// What LMDB puts there: a header of two cache lines and a line for each slot.
	lockHeader, lockSlot = 128, 64
)

// reserveLock takes the room on the disk that the table of readers needs. LMDB
// leaves it as a hole and maps it: a slot that is used for the first time when
// the disk is full is a SIGBUS. The file's length, by which processes agree how
// many slots there are, is left to LMDB. The environment must not be open in
// this process: to close any descriptor of that file would drop LMDB's locks.
func reserveLock(dir string, slots int) error {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := max(info.Size(), lockHeader+lockSlot*int64(slots))
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	}
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("reserve %d bytes for %s: %w", size, f.Name(), err)
	}
	return nil
}
