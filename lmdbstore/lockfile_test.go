package lmdbstore

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLockFile: whatever becomes of the lock file under a running store, writes and reads
// neither wait for ever nor end the process, and nothing that was written is lost.
func TestLockFile(t *testing.T) {
	word := func(at int, change func(uint32) uint32) func(b []byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[at:], change(binary.LittleEndian.Uint32(b[at:]))) }
	}
	bit := func(n int) func(uint32) uint32 { return func(w uint32) uint32 { return w ^ 1<<n } }
	noise := func(from, to int) func(b []byte) {
		return func(b []byte) {
			r := rand.NewChaCha8([32]byte{1})
			_, _ = r.Read(b[from:to])
		}
	}
	for name, harm := range map[string]func(b []byte){
		"a bit of the writer's lock":                       word(lockWriter, bit(3)),
		"another bit of the writer's lock":                 word(lockWriter, bit(31)),
		"a bit of the readers' lock":                       word(lockReaders, bit(3)),
		"the kind of the writer's lock":                    word(lockWriter+mutexKind, func(uint32) uint32 { return 0xFFFF_FFFF }),
		"the kind of the readers' lock":                    word(lockReaders+mutexKind, bit(6)),
		"the magic number":                                 word(lockMagic, bit(0)),
		"a later transaction":                              word(lockTxn, func(w uint32) uint32 { return w + 1 }),
		"an earlier transaction":                           word(lockTxn, func(w uint32) uint32 { return w - 1 }),
		"a transaction in the far future":                  word(lockTxn+4, bit(20)),
		"a later transaction, and reads first":             word(lockTxn, func(w uint32) uint32 { return w + 1 }),
		"a transaction in the far future, and reads first": word(lockTxn+4, bit(20)),
		"noise in the header":                              noise(0, lockHeader),
		"noise in the table of readers":                    noise(lockHeader, lockHeader+10*lockSlot),
		"noise in both":                                    noise(0, lockHeader+10*lockSlot),
		"zeros in the header":                              func(b []byte) { clear(b[:lockHeader]) },
		"zeros in the header, but its magic":               func(b []byte) { clear(b[8:lockHeader]) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			if s.current.Load().env.lock == nil {
				t.Skip("the lock file is laid out in another way here")
			}
			h := newHistory()
			apply(t, s, h.begin(), h.entry(put("a", "1")))
			apply(t, s, h.entry(put("b", "2")))
			scribble(t, filepath.Join(dir, nameOf(1), lockFile), harm)
			done := make(chan bool)
			go func() {
				defer close(done)
				if strings.HasSuffix(name, "reads first") {
					matches(t, s, h)
				}
				for range 3 {
					apply(t, s, h.entry(put("c", "3")))
				}
				e := s.current.Load().env
				var all []*readTxn
				for range 8 { // more slots than were used before
					r, err := e.begin(nil)
					if err != nil {
						t.Error(err)
						continue
					}
					all = append(all, r)
				}
				for _, r := range all {
					e.end(r)
				}
				matches(t, s, h)
				if _, err := s.Scrub(t.Context(), ScrubOptions{Rate: -1}); err != nil {
					t.Error(err)
				}
			}()
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				t.Fatal("it waits for a lock that nobody holds")
			}
			closed(t, s)
			matches(t, open(t, dir, Options{}), h)
		})
	}
}

// scribble changes the beginning of a file in place.
func scribble(t *testing.T, file string, change func([]byte)) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4096)
	if _, err = f.ReadAt(b, 0); err == nil {
		change(b)
		_, err = f.WriteAt(b, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestLockFileStaysDamaged: when another process keeps the file it is not opened again
// for ever.
func TestLockFileStaysDamaged(t *testing.T) {
	e := &env{log: slog.New(slog.DiscardHandler), lock: &lockView{}}
	bad := func(*lockView) error { return errors.New("bad") }
	good := func(*lockView) error { return nil }
	for i, step := range []struct {
		epoch  uint64
		check  func(*lockView) error
		broken bool
		damage bool
	}{{5, bad, true, false}, {5, bad, true, false}, {6, good, false, false}, {6, bad, true, false}, {7, bad, false, true}} {
		err := e.checkLock(step.epoch, step.check)
		if needsHealing(err) != step.broken || errors.Is(err, ErrDamaged) != step.damage || (err == nil) == (step.broken || step.damage) {
			t.Errorf("step %d: %v", i, err)
		}
	}
}
