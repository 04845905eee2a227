package replica

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestSignedScenarios(t *testing.T) {
	id := datasetID(1)
	h := history(id, 3000, 1<<30, "")
	fork := &heads.ForkError{Dataset: id, Seq: 1500, Path: "evidence/fork-1500.json"}
	for _, c := range []struct {
		name string
		run  func(t *testing.T, w *world)
	}{
		{"an upstream that can not be believed is left for another one", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1100], 1)
			m.breaks = &heads.FaultError{Reason: heads.Altered, Err: errors.New("entry 1101 came as …")}
			b := w.add("b", h[:1200], 1)
			s := w.boot()
			s.until("the other one is followed", time.Minute, func(st Status) bool { return st.Applied.Seq == 1200 })
			// The writer stays the first choice, so it is asked again, but seldom.
			before := w.attempts
			w.change(func() { m.log, b.log = h[:1300], h[:1300] })
			time.Sleep(10 * time.Minute)
			s.until("following", time.Minute, func(st Status) bool { return st.Applied.Seq == 1300 })
			if n := w.attempts - before; n > 80 {
				t.Errorf("%d attempts in ten minutes", n)
			}
			if n := s.alarms.all; n > 20 {
				t.Errorf("%d messages", n)
			}
			if st := s.r.Status(); !st.Ready || st.Rebuilds != 0 {
				t.Errorf("status %+v", st)
			}
		}},
		{"all upstreams are at fault", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			fault := &heads.FaultError{Reason: heads.Uncovered, Err: errors.New("no signed head came")}
			m := w.addWriter("m", h[:2000], 1)
			m.refusal = fault
			b := w.add("b", h[:2000], 1)
			b.refusal = fault
			s := w.boot()
			s.until("serving what it has", time.Minute, ready)
			s.always("no rebuild, no divergence", time.Hour, func(st Status) bool {
				return st.Ready && st.State == Serving && st.Applied.Seq == 1000 && st.Rebuilds == 0
			})
			w.change(func() { m.refusal = nil })
			s.until("following", 2*time.Minute, func(st Status) bool { return st.Applied.Seq == 2000 })
		}},
		{"a contradiction without proof", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			// The writer, and another one: without signatures that would decide.
			for _, n := range []*node{w.addWriter("m", h[:1000], 1), w.add("b", h[:1000], 1)} {
				n.refusal = &heads.FaultError{Reason: heads.Unproven, Err: &txlog.DivergedError{Seq: 1000, Have: txlog.Hash{1}, Want: h[999].Hash}}
			}
			w.add("c", h[:1100], 1)
			s := w.boot()
			s.until("following the third", time.Minute, func(st Status) bool { return st.Applied.Seq == 1100 })
			if n := s.alarms.count("diverged"); n != 0 {
				t.Errorf("it took itself for diverged")
			}
		}},
		{"a contradiction that is proved", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:2000], 1)
			m.offers = []int{1900}
			m.refusal = &heads.ContradictedError{Seq: 1000, Have: h[999].Hash, Want: txlog.Hash{1}}
			s := w.boot()
			s.until("quarantined", time.Minute, func(st Status) bool { return st.State == Repairing && !st.Ready })
			w.change(func() { m.refusal = nil })
			s.serving(2000, time.Minute)
		}},
		{"a fork stops everything, and what is there is served", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1500], 1)
			b := w.add("b", h[:1500], 1)
			s := w.boot()
			s.until("serving", 10*time.Second, func(st Status) bool { return st.Applied.Seq == 1500 && st.Ready })
			w.change(func() { m.breaks, b.breaks = fork, fork })
			stands := func(st Status) bool {
				return st.State == Quarantined && st.Ready && st.Applied.Seq == 1500 && st.Err == fork.Error() && st.Rebuilds == 0
			}
			s.until("standing", time.Minute, stands)
			w.change(func() { m.log, b.log, m.breaks, b.breaks, b.offers = h[:3000], h[:3000], nil, nil, []int{2500} })
			before := w.attempts
			s.always("standing", time.Hour, stands)
			if w.attempts != before {
				t.Errorf("%d more attempts to follow somebody", w.attempts-before)
			}
			if n := s.alarms.count("nothing is applied any more"); n != 1 {
				t.Errorf("logged %d times", n)
			}
			if err := s.r.WaitApplied(context.Background(), 1501); !errors.Is(err, ErrStopped) {
				t.Errorf("waiting for an entry: %v", err)
			}
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			s = w.boot() // the evidence is still there
			s.until("standing after a restart", 10*time.Second, stands)
			s.always("standing after a restart", time.Hour, stands)
			s.stop()
			w.signed = newFakeHeads()
			s = w.boot()
			s.serving(3000, time.Minute)
		}},
		{"a fork that somebody else found while a snapshot is fetched", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:2000], 1500)
			m.offers = []int{1900}
			s := w.boot()
			s.until("fetching", time.Minute, func(st Status) bool { return st.Done > 0 })
			w.signed.stop(fork)
			s.until("standing", time.Second, func(st Status) bool { return st.State == Quarantined && !st.Ready && st.Total == 0 })
			s.always("standing", time.Hour, func(st Status) bool { return st.Applied.IsZero() && st.State == Quarantined && !st.Ready })
		}},
		{"the head is what was signed, whatever is said", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.add("b", h[:1000], 1)
			m.boast = 1 << 40
			s := w.boot()
			w.signed.sign(at(h, 1200), writerClock.Add(time.Hour))
			s.until("told", time.Minute, func(st Status) bool {
				return st.Head == at(h, 1200) && st.HeadTime.Equal(writerClock.Add(time.Hour)) && st.Signed.Equal(writerClock.Add(time.Hour))
			})
			w.change(func() { m.log, m.boast = h[:1200], 0 })
			s.until("level", time.Minute, func(st Status) bool {
				return st.Applied == at(h, 1200) && st.Head == at(h, 1200) && st.HeadTime.Equal(h[1199].Time)
			})
			s.always("never what is only said", 10*time.Minute, func(st Status) bool { return st.Head.Seq == 1200 })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.signed = newFakeHeads()
				c.run(t, w)
			})
		})
	}
}

// The writer stands still, too, and lets those go who wait for an entry.
func TestWriterHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(datasetID(1), 200, 1<<30, "")
		w := newWorld(t)
		w.holding(h, 0, 100)
		w.signed = newFakeHeads()
		start := func() (r *Replica, stop func() error) {
			r, err := New(Config{Name: "m", Log: fakeLog{w.disk}, Store: fakeStore{w.disk}, Heads: w.signed, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx) }()
			return r, func() error { cancel(); return <-done }
		}
		r, stop := start()
		synctest.Wait()
		if st := r.Status(); st.State != Serving || !st.Ready {
			t.Fatalf("status %+v", st)
		}
		waited := make(chan error, 1)
		go func() { waited <- r.WaitApplied(t.Context(), 150) }()
		synctest.Wait()
		w.signed.stop(&heads.LostError{Signed: txlog.Pos{Seq: 120}, Head: at(h, 100)})
		if err := <-waited; !errors.Is(err, ErrStopped) {
			t.Errorf("who waited was told %v", err)
		}
		for range 2 {
			synctest.Wait()
			w.disk.set(func() { w.disk.entries = slices.Clone(h[:150]) })
			time.Sleep(time.Minute)
			if st := r.Status(); st.State != Quarantined || !st.Ready || st.Applied != at(h, 100) || st.Err == "" {
				t.Errorf("status %+v", st)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			r, stop = start()
		}
		stop()
	})
}
