package replica

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// TestFaultyDisk: whatever keeps a disk from taking writes, a replica serves what
// it holds, after a restart too, and goes on by itself once the disk does.
func TestFaultyDisk(t *testing.T) {
	h := history(datasetID(1), 1100, 1<<30, "")
	for _, fault := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EMFILE, txlog.ErrFailed} {
		for _, op := range []string{"append", "apply"} {
			t.Run(fmt.Sprintf("%s: %v", op, fault), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.holding(h, 0, 1000)
					w.addWriter("m", h, 1)
					w.disk.broken[op] = fault
					for range 2 {
						s := w.boot()
						s.until("it serves what it holds", 2*staleReady, ready)
						s.always("it goes on", time.Hour, func(st Status) bool { return st.Ready && st.Applied.Seq == 1000 && st.Err != "" })
						s.stop()
						if s.err != nil {
							t.Fatal(s.err)
						}
					}
					s := w.boot()
					defer s.stop()
					s.until("the error shows", time.Minute, func(st Status) bool { return st.Err != "" })
					w.disk.set(func() { delete(w.disk.broken, op) })
					s.serving(1100, 2*diskMax)
				})
			})
		}
	}
}

// TestStuck: what can not be applied is not waited for.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(datasetID(1), 1100, 1<<30, "")
		w := newWorld(t)
		w.holding(h, 0, 1000)
		w.addWriter("m", h, 1)
		w.disk.full["apply"] = true
		s := w.boot()
		defer s.stop()
		for range 2 { // who waits already, and who comes later
			if err := s.r.WaitApplied(t.Context(), 1100); !errors.Is(err, ErrStuck) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("it waited, and then: %v", err)
			}
		}
		if err := s.r.Stuck(); !errors.Is(err, ErrStuck) {
			t.Errorf("stuck: %v", err)
		}
		w.disk.set(func() { w.disk.full["apply"] = false })
		s.serving(1100, 2*diskMax)
		if err := errors.Join(s.r.Stuck(), s.r.WaitApplied(t.Context(), 1100)); err != nil {
			t.Error(err)
		}
	})
}
