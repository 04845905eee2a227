package replica

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

func TestWaitApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(datasetID(1), 1000, 1<<30, "")
		w := newWorld(t)
		w.holding(h, 0, 100)
		m := w.addWriter("m", h[:100], 1)
		s := w.boot()
		if err := s.r.WaitApplied(t.Context(), 100); err != nil {
			t.Error(err)
		}
		var wg sync.WaitGroup
		for seq := uint64(101); seq <= 1000; seq++ {
			wg.Go(func() {
				if err := s.r.WaitApplied(t.Context(), seq); err != nil {
					t.Error(err)
				}
				if got := w.disk.position().Seq; got < seq {
					t.Errorf("released at %d before %d", got, seq)
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.r.WaitApplied(ctx, 500); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		w.change(func() { m.log = h })
		wg.Wait()
		stopped := make(chan error)
		go func() { stopped <- s.r.WaitApplied(t.Context(), 1001) }()
		synctest.Wait()
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if err := <-stopped; !errors.Is(err, ErrStopped) {
			t.Errorf("error %v", err)
		}
		if n := len(s.r.board.waiting); n != 0 {
			t.Errorf("%d waiters left over", n)
		}
	})
}

func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(datasetID(1), 2100, 1<<30, "")
		w := newWorld(t)
		w.holding(h, 0, 100)
		m := w.addWriter("m", h[:100], 1)
		s := w.boot()
		s.serving(100, 10*time.Second)
		before := len(s.told)
		for n := 101; n <= 2100; n++ { // for 20 s
			w.change(func() { m.log = h[:n] })
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(tellInterval)
		synctest.Wait()
		if n := len(s.told) - before; n < 150 || n > 201 {
			t.Errorf("told %d times in 20 s", n)
		}
		if last := s.told[len(s.told)-1]; last.Applied.Seq != 2100 {
			t.Errorf("told %+v last", last)
		}
		w.change(func() { m.liar = true })
		w.change(func() { m.gone = true })
		time.Sleep(time.Second)
		w.change(func() { m.gone = false })
		s.until("quarantined", 10*time.Second, func(st Status) bool { return st.State == Quarantined })
		if last := s.told[len(s.told)-1]; last.State != Quarantined || last.Ready {
			t.Errorf("a change of state was told late: %+v", last)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestAttemptsAreBounded lets a large fleet refuse, and flap, for half an hour.
func TestAttemptsAreBounded(t *testing.T) {
	h := history(datasetID(1), 1000, 1<<30, "")
	for name, flap := range map[string]bool{"refusing": false, "flapping": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.holding(h, 0, 100)
				for i := range 20 {
					w.add(string(rune('A'+i)), h, 1).unreachable = true
				}
				s := w.boot()
				for range 1800 {
					time.Sleep(time.Second)
					if flap {
						for _, n := range w.nodes[:5] {
							w.change(func() { n.gone = !n.gone })
						}
					}
				}
				synctest.Wait()
				if w.attempts < 100 || w.attempts > 2*1800 {
					t.Errorf("%d attempts in half an hour", w.attempts)
				}
				if s.alarms.all > 10 {
					t.Errorf("%d log lines above debug: %v", s.alarms.all, s.alarms.list)
				}
				if st := s.r.Status(); !st.Ready {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

func TestWriter(t *testing.T) {
	h := history(datasetID(1), 1000, 1<<30, "")
	fork := history(datasetID(1), 1000, 100, "other")
	for _, c := range []struct {
		name string
		set  func(w *world)
		want string // error
	}{
		{"log ahead of the store", func(w *world) { w.holding(h, 0, 200); w.disk.entries = h[:500:500] }, ""},
		{"level", func(w *world) { w.holding(h, 0, 500) }, ""},
		{"new dataset", func(w *world) {
			w.holding(h, 0, 500)
			w.disk.storePos, w.disk.storeID = txlog.Pos{}, txlog.DatasetID{}
		}, ""},
		{"log behind the store", func(w *world) { w.holding(h, 0, 500); w.disk.entries = h[:400:400] }, "acknowledged entries are missing from the log: the log ends at 400/"},
		{"log of another history", func(w *world) { w.holding(h, 0, 500); w.disk.entries = fork[:600:600] }, "does not fit the log"},
		{"log of another dataset", func(w *world) { w.holding(h, 0, 500); w.disk.logID = datasetID(2) }, "do not belong together"},
		{"log trimmed too far", func(w *world) { w.holding(h, 0, 200); w.disk.base, w.disk.entries = at(h, 300), h[300:500:500] }, "lags too far behind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				c.set(w)
				r, err := New(Config{Name: "m", Log: fakeLog{w.disk}, Store: fakeStore{w.disk}})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- r.Run(ctx) }()
				synctest.Wait()
				if c.want != "" {
					if err := <-ended; err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("error %v", err)
					}
					cancel()
					return
				}
				if st := r.Status(); st.State != Serving || !st.Ready || st.Applied.Seq != 500 || st.Head.Seq != 500 || !st.HeadTime.Equal(h[499].Time) {
					t.Errorf("status %+v", st)
				}
				if _, err := (fakeLog{w.disk}).AppendEntries(h[500:600]); err != nil {
					t.Fatal(err)
				}
				if err := r.WaitApplied(ctx, 600); err != nil {
					t.Error(err)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if err := r.Run(ctx); err == nil {
					t.Error("Run twice is no error")
				}
			})
		})
	}
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]Config{
		"no name":         {Log: fakeLog{w.disk}, Store: fakeStore{w.disk}},
		"no log":          {Name: "a", Store: fakeStore{w.disk}},
		"fleet only":      {Name: "a", Log: fakeLog{w.disk}, Store: fakeStore{w.disk}, Fleet: w},
		"no way to reach": {Name: "a", Log: fakeLog{w.disk}, Store: fakeStore{w.disk}, Network: w},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
