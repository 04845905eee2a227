package lmdbstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// LMDB keeps its locks and the number of the last transaction in a file that it maps,
// and believes what it finds there. A bit that turned may be a lock that nobody holds,
// for which a write waits for ever; a kind of lock that there is not, at which the C
// library aborts; or a transaction that was not the last, on which the next one is
// based. So they are looked at before LMDB takes them. The file is one that is made
// anew when the environment is opened again, and nothing is lost with it.
//
// What stands where is that of LMDB with glibc's locks on 64-bit x86; where an
// environment that was just opened looks otherwise nothing is checked.
const (
	lockMagic, lockMagicIs = 0, 0xBEEFC0DE
	lockReaders            = 8 // the lock of the table of readers
	lockTxn                = 48
	lockWriter             = 64 // the lock of who writes

	// In each lock.
	mutexWord, mutexOwner         = 0, 8
	mutexKind, mutexKindIs        = 16, 0x90 // robust, and shared between processes
	mutexThread, mutexOwnerIsDead = 1<<30 - 1, 1 << 30

	// lockPatience is how long a lock may look as if it was just being taken or given back.
	lockPatience = time.Second
)

// lockView shows the lock file of an open environment.
type lockView struct{ view *mapped }

// viewLock has to be called before LMDB opens the file: to close a descriptor of it later
// would drop LMDB's locks. It returns nil if there is nothing to be seen.
func viewLock(dir string) *lockView {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	view, err := mapFile(f, lockHeader)
	if err != nil {
		return nil
	}
	return &lockView{view}
}

func (l *lockView) close() {
	if l != nil {
		_ = l.view.close() // nothing can be done about it
	}
}

type lockHead [lockHeader]byte

func (h *lockHead) word(at int) uint32 { return binary.LittleEndian.Uint32(h[at:]) }

// isKnown reports whether it is laid out as expected.
func (h *lockHead) isKnown() bool {
	return h.word(lockMagic) == lockMagicIs && h.word(lockReaders+mutexKind) == mutexKindIs && h.word(lockWriter+mutexKind) == mutexKindIs
}

// isTakenByNobody reports whether a lock is taken, and not by who it says took it.
func (h *lockHead) isTakenByNobody(lock int) bool {
	word := h.word(lock + mutexWord)
	thread := word & mutexThread
	return word != 0 && word&mutexOwnerIsDead == 0 && (thread == 0 || thread != h.word(lock+mutexOwner))
}

func (l *lockView) head() (h lockHead, err error) {
	_, err = l.view.ReadAt(h[:], 0)
	return h, err
}

// check returns what is wrong with the file.
func (l *lockView) check() error {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		h, err := l.head()
		switch {
		case err != nil:
			return err
		case !h.isKnown():
			return fmt.Errorf("its header is not LMDB's")
		case !h.isTakenByNobody(lockReaders) && !h.isTakenByNobody(lockWriter):
			return nil
		case time.Since(began) > lockPatience:
			return fmt.Errorf("a lock in it is taken, and nobody holds it")
		}
	}
}

// checkTxn compares the last transaction with that of the data file, while nobody writes.
// One that was under way when another process ended may be in the data file only.
func (l *lockView) checkTxn(last uint64, mayBeOneBefore bool) error {
	h, err := l.head()
	if err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint64(h[lockTxn:]); got != last && (!mayBeOneBefore || got+1 != last) {
		return fmt.Errorf("the last transaction is %d in it, and %d in the data file", got, last)
	}
	return nil
}

// knowLock has the lock file of an environment that was opened looked at from now on, if it
// is laid out as expected, or was before.
func (e *env) knowLock() {
	if e.lock == nil {
		return
	}
	if h, err := e.lock.head(); err == nil && h.isKnown() {
		e.lockKnown = true
	}
	if !e.lockKnown {
		e.lock.close()
		e.lock = nil
	}
}

// checkLock looks at the lock file before LMDB does. epoch is the readers'. What is
// damaged once is an errBroken, as the file is made anew when the environment is opened
// again; after that, when another process keeps it, it is damage.
func (e *env) checkLock(epoch uint64, check func(*lockView) error) error {
	if e.lock == nil {
		return nil
	}
	err := check(e.lock)
	if err == nil {
		e.lockBad.Store(0)
		return nil
	}
	err = fmt.Errorf("%s: %w", filepath.Join(e.dir, lockFile), err)
	if first := e.lockBad.Load(); errors.Is(err, ErrDamaged) { // LMDB could not close it
		return err
	} else if first != 0 && first != epoch+1 {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.lockBad.Swap(epoch+1) == 0 {
		e.log.Error("the lock file is damaged; the environment is opened again with a new one", "err", err)
	}
	return fmt.Errorf("%w: %w", errBroken, err)
}
