package lmdbstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
)

// TestLetGo closes environments of which LMDB is not to be trusted any more: their
// files must not stay mapped or open, or their space is lost until the process ends.
func TestLetGo(t *testing.T) {
	for _, inDoubt := range []bool{false, true} {
		dir, h := sound(t)
		s := open(t, dir, Options{})
		e := s.current.Load().env
		if err := os.Truncate(filepath.Join(dir, nameOf(1), dataFile), 0); err != nil {
			t.Fatal(err)
		}
		kept := guard.Kept()
		if inDoubt {
			// Those below would be stopped before LMDB looks at the file.
			if _, err := e.ldb.Begin(0); !isFault(err) {
				t.Errorf("a write transaction: %v", err)
			}
		} else {
			_ = e.note(ErrDamaged)
		}
		if _, _, err := s.Get(nil, []byte("key-1")); !errors.Is(err, ErrDamaged) {
			t.Errorf("get: %v", err)
		}
		if err := s.Apply(h.randoms(seeded(t), 1)); !errors.Is(err, ErrDamaged) {
			t.Errorf("apply: %v", err)
		}
		if err := s.View(func(*Tx) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("view: %v", err)
		}
		<-s.Damaged()
		closed(t, s)
		if now := guard.Kept(); (now > kept) != inDoubt {
			t.Errorf("in doubt %t: %d environments were not closed, %d before", inDoubt, now, kept)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Skip(err)
		}
		if file := filepath.Join(dir, nameOf(1), dataFile); strings.Contains(string(maps), file) {
			t.Errorf("in doubt %t: %s is still mapped", inDoubt, file)
		}
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if file, _ := os.Readlink(fd); strings.HasPrefix(file, filepath.Join(dir, nameOf(1), dataFile)) {
				t.Errorf("in doubt %t: %s is still open", inDoubt, file)
			}
		}
		if clean, _ := closedCleanly(filepath.Join(dir, nameOf(1))); clean {
			t.Error("a damaged environment counts as closed")
		}
	}
}

// TestFaultWhileClosing: LMDB is stopped in the middle of mdb_env_close, which has
// freed most by then. Nothing uses or closes that environment any more, and only it
// is kept.
func TestFaultWhileClosing(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*env) error
	}{
		{"closed", (*env).close},
		{"remapped", func(e *env) error {
			e.writer.Lock()
			defer e.writer.Unlock()
			return e.remap(2*e.mapBytes.Load(), e.readers.current())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, h := sound(t)
			s := open(t, dir, Options{})
			if _, _, err := s.Get(nil, []byte("key-1")); err != nil {
				t.Fatal(err)
			}
			before := s.State().Pos
			e := s.current.Load().env
			if err := os.Truncate(filepath.Join(dir, nameOf(1), lockFile), 0); err != nil {
				t.Fatal(err)
			}
			kept := guard.Kept()
			err := c.do(e)
			if c.name == "remapped" && !errors.Is(err, ErrDamaged) {
				t.Errorf("remap: %v", err)
			}
			if !errors.Is(s.Damage(), ErrDamaged) {
				t.Errorf("damage: %v", s.Damage())
			}
			if _, _, err := s.Get(nil, []byte("key-1")); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrClosed) {
				t.Errorf("get: %v", err)
			}
			if err := s.Apply(h.randoms(seeded(t), 1)); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrClosed) {
				t.Errorf("apply: %v", err)
			}
			if _, err := s.Scrub(t.Context(), ScrubOptions{Rate: -1}); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrClosed) {
				t.Errorf("scrub: %v", err)
			}
			closed(t, s)
			if n := guard.Kept() - kept; n != 1 {
				t.Errorf("%d environments are kept", n)
			}
			if clean, _ := closedCleanly(filepath.Join(dir, nameOf(1))); clean {
				t.Error("it counts as closed in order")
			}
			s = open(t, dir, Options{}) // nothing is wrong with the data
			if report, err := s.Scrub(t.Context(), ScrubOptions{Rate: -1}); err != nil || report.Pos != before {
				t.Errorf("opened again: %+v, %v", report, err)
			}
			closed(t, s)
		})
	}
}
