package replica

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/txlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNoSpace error = syscall.ENOSPC

// sim is one running replica in a world.
type sim struct {
	*world
	t      *testing.T
	r      *Replica
	alarms *alarms
	cancel context.CancelFunc
	done   chan struct{}
	err    error
	told   []Status
}

// boot starts a replica on the world's disk, as a process start does.
func (w *world) boot() *sim {
	w.t.Helper()
	s := &sim{world: w, t: w.t, done: make(chan struct{}), alarms: &alarms{}}
	ctx, cancel := context.WithCancel(w.t.Context())
	s.cancel = cancel
	w.disk.mu.Lock()
	w.disk.onCrash = cancel
	w.disk.mu.Unlock()
	c := Config{
		Name: "self", Log: fakeLog{w.disk}, Store: fakeStore{w.disk}, Fleet: w, Network: w, Quarantine: fakeQuarantine{w.disk}, Logger: slog.New(s.alarms),
		OnChange: func(st Status) { s.told = append(s.told, st) },
	}
	if w.signed != nil {
		c.Heads = w.signed
	}
	r, err := New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	s.r = r
	go func() {
		defer close(s.done)
		s.err = r.Run(ctx)
	}()
	return s
}

// stop ends the replica and returns Run's error.
func (s *sim) stop() error {
	s.cancel()
	<-s.done
	return s.err
}

// until waits, at most for d, until ok.
func (s *sim) until(what string, d time.Duration, ok func(Status) bool) {
	s.t.Helper()
	for end := time.Now().Add(d); ; {
		synctest.Wait()
		st := s.r.Status()
		if ok(st) {
			return
		}
		select {
		case <-s.done:
			s.t.Fatalf("%s: Run ended: %v", what, s.err)
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: not within %v: %+v", what, d, st)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *sim) serving(seq int, d time.Duration) {
	s.t.Helper()
	s.until("serving", d, func(st Status) bool {
		return st.State == Serving && st.Ready && st.Applied.Seq == uint64(seq)
	})
	if st := s.r.Status(); st.Err != "" {
		s.t.Errorf("serving with an error: %+v", st)
	}
}

// always checks a condition for a while.
func (s *sim) always(what string, d time.Duration, ok func(Status) bool) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		synctest.Wait()
		if st := s.r.Status(); !ok(st) {
			s.t.Fatalf("%s: no longer: %+v", what, st)
		}
	}
}

// holding is a disk that holds a history up to an entry, in log and store.
func (w *world) holding(h []txlog.Entry, base, seq int) {
	d := w.disk
	d.set(func() {
		d.logID, d.storeID = datasetID(1), datasetID(1)
		d.begun, d.base, d.entries = true, at(h, base), h[base:seq:seq]
		d.storePos = at(h, seq)
	})
}

func ready(st Status) bool { return st.Ready }

func TestScenarios(t *testing.T) {
	id := datasetID(1)
	h := history(id, 3000, 1<<30, "")
	fork := history(id, 3000, 500, "other")
	for _, c := range []struct {
		name string
		run  func(t *testing.T, w *world)
	}{
		{"fresh bootstrap from the newest snapshot", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:2000], 500)
			m.offers = []int{600, 1500}
			s := w.boot()
			s.until("bootstrapping", 5*time.Second, func(st Status) bool {
				return st.State == Bootstrapping && !st.Ready && st.Done > 0 && st.Total == 1000
			})
			s.serving(2000, time.Minute)
			if st := s.r.Status(); st.Rebuilds != 1 || st.Head != at(h, 2000) || !st.HeadTime.Equal(h[1999].Time) || st.Upstream != "m" || st.Total != 0 {
				t.Errorf("status %+v", st)
			}
			if first := (fakeLog{w.disk}).First(); first != 1501 {
				t.Errorf("the log starts at %d", first)
			}
			w.change(func() { m.log = h[:2100] })
			s.serving(2100, time.Second)
		}},
		{"from zero when there is no snapshot", func(t *testing.T, w *world) {
			w.addWriter("m", h[:2000], 1)
			s := w.boot()
			s.serving(2000, time.Minute)
			if st := s.r.Status(); st.Rebuilds != 0 {
				t.Errorf("rebuilds = %d", st.Rebuilds)
			}
		}},
		{"nobody there, then somebody", func(t *testing.T, w *world) {
			s := w.boot()
			s.always("joining", time.Minute, func(st Status) bool { return st.State == Joining && !st.Ready })
			w.addWriter("m", h[:10], 1)
			s.serving(10, 10*time.Second)
		}},
		{"an empty fleet waits for a snapshot", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:2000], 700)
			s := w.boot()
			s.always("not ready", time.Minute, func(st Status) bool { return !st.Ready && st.Rebuilds == 0 })
			w.change(func() { m.offers = []int{1900} })
			s.serving(2000, time.Minute)
		}},
		{"catch up, then serve", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.addWriter("m", h[:3000], 1)
			s := w.boot()
			s.until("catching up or done", time.Second, func(st Status) bool { return st.State != Joining })
			s.serving(3000, 10*time.Second)
			for _, st := range s.told {
				if st.Ready && st.Applied.Seq < 3000-near {
					t.Errorf("ready at %d of 3000", st.Applied.Seq)
				}
			}
		}},
		{"a restart far from anybody serves what it has", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.addWriter("m", h[:3000], 1).unreachable = true
			s := w.boot()
			s.always("not ready yet", staleReady-time.Second, func(st Status) bool { return !st.Ready })
			s.until("ready", 5*time.Second, ready)
			if st := s.r.Status(); st.Err == "" || st.Head.Seq != 3000 || st.State != Serving {
				t.Errorf("status %+v", st)
			}
		}},
		{"rebuilt when nobody is left who knows where the log ends", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:2000], 1)
			m.offers, m.unreachable = []int{1900}, true // and claims to have more
			s := w.boot()
			s.until("rebuilt", 30*time.Second, func(st Status) bool { return st.Applied.Seq == 1900 || st.State == CatchingUp })
			s.always("not ready yet", staleReady/2, func(st Status) bool { return !st.Ready })
			s.until("ready", staleReady, ready)
			if st := s.r.Status(); st.Applied.Seq != 1900 || st.Rebuilds != 1 || st.State != Serving {
				t.Errorf("status %+v", st)
			}
		}},
		{"rebuilt when nobody claims to have more", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:1900], 1)
			m.offers, m.unreachable = []int{1900}, true
			s := w.boot()
			s.until("rebuilt", 30*time.Second, func(st Status) bool { return st.Applied.Seq == 1900 || st.State == CatchingUp })
			s.until("ready", 2*time.Second, ready)
			if st := s.r.Status(); st.Applied.Seq != 1900 || st.Rebuilds != 1 || st.State != Serving {
				t.Errorf("status %+v", st)
			}
		}},
		{"upstream dies", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			b := w.add("b", h[:1000], 1)
			s := w.boot()
			s.serving(1000, 10*time.Second)
			w.change(func() { m.unreachable = true })
			w.change(func() { b.log = h[:1001] })
			s.serving(1001, 10*time.Second)
			w.change(func() { m.gone = true })
			w.change(func() { b.log = h[:1100] })
			s.serving(1100, time.Second)
			w.change(func() { b.gone = true })
			s.always("ready", time.Hour, ready)
			w.change(func() { m.gone, m.unreachable, m.log = false, false, h[:1200] })
			s.serving(1200, 10*time.Second)
		}},
		{"the writer is back: nobody waits for a stale neighbour", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			w.add("b", h[:1000], 1)
			s := w.boot()
			s.until("follows the writer", 10*time.Second, func(st Status) bool { return st.Upstream == "m" })
			w.change(func() { m.gone, m.unreachable = true, true })
			s.until("follows the neighbour", 10*time.Second, func(st Status) bool { return st.Upstream == "b" })
			time.Sleep(time.Minute)
			w.change(func() { m.gone, m.unreachable, m.log = false, false, h[:1100] })
			s.serving(1100, 3*time.Second)
		}},
		{"upstream hangs", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.addWriter("m", h[:1100], 1).hang = true
			w.add("b", h[:1100], 1)
			s := w.boot()
			s.until("served by b", time.Minute, func(st Status) bool { return st.Upstream == "b" })
			s.serving(1100, time.Second)
		}},
		{"upstream goes silent", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			b := w.add("b", h[:1000], 1)
			s := w.boot()
			s.serving(1000, 10*time.Second)
			w.change(func() { m.silent, b.log = true, h[:1100] })
			s.serving(1100, 10*time.Second)
		}},
		{"stale upstream", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			b := w.add("b", h[:1000], 1)
			w.change(func() { b.Manager = true })
			m := w.addWriter("m", h[:1000], 1)
			w.change(func() { m.Near = false })
			s := w.boot()
			s.serving(1000, 10*time.Second)
			if st := s.r.Status(); st.Upstream != "b" {
				t.Errorf("follows %q, not the near one", st.Upstream)
			}
			w.change(func() { m.log = h[:1500] })
			s.serving(1500, 2*staleAfter)
			w.change(func() { b.log, b.frozen = h[:1600], true })
			w.change(func() { m.log = h[:1600] })
			s.serving(1600, 2*staleAfter)
		}},
		{"a boaster does not stop us", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			b := w.add("b", h[:1000], 1)
			w.change(func() { b.Manager, b.boast = true, 1e9 })
			m := w.addWriter("m", h[:1000], 1)
			w.change(func() { m.Near = false })
			s := w.boot()
			s.until("ready", 30*time.Second, ready)
			for n := 1000; n < 1100; n++ {
				w.change(func() { m.log = h[:n] })
				time.Sleep(time.Second)
			}
			s.until("caught up", 15*time.Second, func(st Status) bool { return st.Applied.Seq == 1099 })
		}},
		{"garbage from an upstream", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.addWriter("m", h[:1100], 1).garbage = true
			w.add("b", h[:1100], 1)
			s := w.boot()
			s.until("caught up", time.Minute, func(st Status) bool { return st.Applied.Seq == 1100 })
			s.always("no quarantine", time.Minute, func(st Status) bool { return st.State != Quarantined && st.Rebuilds == 0 })
		}},
		{"all upstreams trimmed: rebuild while serving", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			b := w.add("b", h[:1000], 1)
			s := w.boot()
			s.serving(1000, 10*time.Second)
			w.change(func() { m.gone, b.gone = true, true })
			time.Sleep(time.Minute)
			w.change(func() {
				m.gone, m.log, m.First, m.offers = false, h[:2600], 1500, []int{1600, 2000}
				b.gone, b.log, b.First = false, h[:2600], 1700
			})
			s.until("bootstrapping", 10*time.Second, func(st Status) bool { return st.State == Bootstrapping })
			s.until("caught up", time.Minute, func(st Status) bool {
				if !st.Ready {
					t.Fatalf("not ready while rebuilding: %+v", st)
				}
				return st.Applied.Seq != 1000
			})
			s.serving(2600, time.Second)
			if st := s.r.Status(); st.Rebuilds != 1 {
				t.Errorf("status %+v", st)
			}
		}},
		{"one upstream trimmed is no reason to rebuild", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.add("b", h[:2000], 1900).offers = []int{1950}
			m := w.addWriter("m", h[:2000], 1)
			w.change(func() { m.unreachable = true })
			s := w.boot()
			time.Sleep(100 * time.Millisecond)
			w.change(func() { m.unreachable = false })
			s.serving(2000, 10*time.Second)
			if st := s.r.Status(); st.Rebuilds != 0 {
				t.Errorf("status %+v", st)
			}
		}},
		{"trimmed while others stay unreachable", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.add("b", h[:2000], 1900).offers = []int{1950}
			w.addWriter("m", h[:2000], 1).unreachable = true
			s := w.boot()
			s.serving(2000, time.Minute)
		}},
		{"trimmed, no snapshot, then the log is back", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.add("b", h[:2000], 1900)
			m := w.addWriter("m", h[:2000], 1)
			w.change(func() { m.unreachable = true })
			s := w.boot()
			s.until("ready anyway", time.Minute, ready)
			w.change(func() { m.unreachable = false })
			s.serving(2000, time.Minute)
		}},
		{"trimmed, and among the others one is level and none answers", func(t *testing.T, w *world) {
			w.holding(h, 0, 1500)
			w.addWriter("m", h[:2000], 1600).offers = []int{2000}
			w.add("w0", h[:1500], 1)
			w.add("w1", h[:1400], 1)
			for _, name := range []string{"w2", "w3"} {
				w.add(name, h[:1800], 1).unreachable = true
			}
			s := w.boot()
			s.serving(2000, 2*time.Minute)
		}},
		{"fetch fails twice then works", func(t *testing.T, w *world) {
			w.addWriter("m", h[:2000], 500).offers = []int{1500}
			w.fetchErr = func(o Offer, n int) error {
				if n <= 2 {
					return errNoSpace
				}
				return nil
			}
			s := w.boot()
			s.until("an error is shown", 20*time.Second, func(st Status) bool { return st.Err != "" })
			s.serving(2000, 2*time.Minute)
			if w.fetches != 3 {
				t.Errorf("%d fetches", w.fetches)
			}
		}},
		{"an older snapshot is no way on", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:2000], 1600)
			m.offers = []int{500, 1000}
			s := w.boot()
			s.always("it holds what it has", 10*time.Minute, func(st Status) bool { return st.Applied.Seq == 1000 })
			if w.fetches != 0 {
				t.Errorf("%d fetches", w.fetches)
			}
			w.change(func() { m.offers = []int{500, 1000, 1700} })
			s.serving(2000, time.Minute)
		}},
		{"not enough signatures yet: the log meanwhile, from zero", func(t *testing.T, w *world) {
			w.addWriter("m", h[:2000], 1).offers = []int{1500}
			w.fetchErr = func(Offer, int) error { return fmt.Errorf("%w: one of two", ErrTooEarly) }
			s := w.boot()
			s.serving(2000, 15*time.Second)
		}},
		{"not enough signatures, and then there are", func(t *testing.T, w *world) {
			w.addWriter("m", h[:2000], 500).offers = []int{1500}
			early := true
			w.fetching = time.Second
			w.fetchErr = func(Offer, int) error {
				if early {
					return ErrTooEarly
				}
				return nil
			}
			s := w.boot()
			s.always("it waits", 10*time.Minute, func(st Status) bool { return st.Applied.IsZero() })
			w.change(func() { early = false })
			s.serving(2000, 5*time.Second)
		}},
		{"a snapshot that never works: another, then from zero", func(t *testing.T, w *world) {
			w.addWriter("m", h[:2000], 1).offers = []int{1000, 1500}
			bad := map[txlog.Pos]bool{at(h, 1500): true}
			w.fetchErr = func(o Offer, n int) error {
				if bad[o.Pos] {
					return errNoSpace
				}
				return nil
			}
			s := w.boot()
			s.serving(2000, time.Minute)
			if first := (fakeLog{w.disk}).First(); first != 1001 {
				t.Errorf("the log starts at %d", first)
			}
			s.stop()
			w.disk = newDisk(t)
			bad[at(h, 1000)] = true
			s = w.boot()
			s.serving(2000, 10*time.Minute)
			if first := (fakeLog{w.disk}).First(); first != 1 {
				t.Errorf("the log starts at %d", first)
			}
		}},
		{"a newer offer does not abort a fetch", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:2000], 500)
			m.offers = []int{1500}
			w.fetching = time.Minute
			s := w.boot()
			s.until("fetching", 10*time.Second, func(st Status) bool { return st.Done > 0 })
			w.change(func() { m.offers = []int{1500, 1600} })
			s.serving(2000, 2*time.Minute)
			if w.fetches != 1 {
				t.Errorf("%d fetches", w.fetches)
			}
		}},
		{"an offer that vanishes is given up", func(t *testing.T, w *world) {
			m := w.addWriter("m", h[:2000], 500)
			m.offers = []int{1500}
			w.fetching = time.Hour
			s := w.boot()
			s.until("fetching", 10*time.Minute, func(st Status) bool { return st.Done > 0 })
			w.change(func() { m.offers, w.fetching = []int{1600}, time.Minute })
			s.serving(2000, 2*time.Minute)
		}},
		{"conflicting offers", func(t *testing.T, w *world) {
			b := w.add("b", h[:2000], 500)
			b.offers, b.wrong = []int{1500}, 1500
			w.add("c", h[:2000], 500).offers = []int{1400}
			w.addWriter("m", h[:2000], 500).offers = []int{1500}
			s := w.boot()
			s.serving(2000, time.Minute)
			right, wrong := infoHash(at(h, 1500), false), infoHash(at(h, 1500), true)
			if !w.disk.fetched[right] || w.disk.fetched[wrong] {
				t.Errorf("fetched %v", w.disk.fetched)
			}
		}},
		{"a lying worker does not take us out of service", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			b := w.add("b", h[:1000], 1)
			w.change(func() { b.Manager, b.liar = true, true })
			m := w.addWriter("m", h[:1000], 1)
			w.change(func() { m.Near = false })
			s := w.boot()
			s.serving(1000, 10*time.Second)
			s.always("in service", time.Hour, func(st Status) bool { return st.Ready && st.State == Serving && st.Rebuilds == 0 })
			if n := s.alarms.count("another history"); n != 1 {
				t.Errorf("%d alarms: %v", n, s.alarms.list)
			}
		}},
		{"two liars against the writer", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			for _, name := range []string{"b", "c"} {
				n := w.add(name, h[:1000], 1)
				w.change(func() { n.Manager, n.liar = true, true })
			}
			m := w.addWriter("m", h[:1000], 1)
			w.change(func() { m.Near = false })
			s := w.boot()
			s.always("in service", time.Hour, func(st Status) bool { return st.State != Quarantined && st.Rebuilds == 0 })
			s.serving(1000, time.Second)
		}},
		{"a lying worker alone", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.add("b", h[:1000], 1).liar = true
			s := w.boot()
			s.until("ready", time.Minute, ready)
			s.always("in service", time.Hour, func(st Status) bool { return st.Ready && st.Rebuilds == 0 })
		}},
		{"diverged, says the writer", func(t *testing.T, w *world) {
			w.holding(fork, 0, 1000)
			w.addWriter("m", h[:2000], 1).offers = []int{900}
			w.disk.backAllowed = true
			s := w.boot()
			s.until("repairing", 10*time.Second, func(st Status) bool { return st.State == Repairing && !st.Ready })
			s.serving(2000, time.Minute)
			if n := s.alarms.count("diverged"); n != 1 {
				t.Errorf("%d alarms: %v", n, s.alarms.list)
			}
		}},
		{"diverged, and no snapshot yet", func(t *testing.T, w *world) {
			w.holding(fork, 0, 1000)
			m := w.addWriter("m", h[:2000], 1)
			w.disk.backAllowed = true
			s := w.boot()
			s.until("quarantined", 10*time.Second, func(st Status) bool { return st.State == Quarantined })
			s.always("quarantined", time.Hour, func(st Status) bool { return st.State == Quarantined && !st.Ready && st.Err != "" })
			w.change(func() { m.offers = []int{1500} })
			s.serving(2000, time.Minute)
		}},
		{"diverged, say two workers while the writer is away", func(t *testing.T, w *world) {
			w.holding(fork, 0, 1000)
			w.add("b", h[:2000], 1)
			w.add("c", h[:2000], 1).offers = []int{1500}
			w.disk.backAllowed = true
			s := w.boot()
			s.until("repairing", 10*time.Second, func(st Status) bool { return st.State == Repairing })
			s.serving(2000, time.Minute)
		}},
		{"ahead of a stale upstream", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			b := w.add("b", h[:900], 1)
			s := w.boot()
			s.until("ready", time.Minute, ready)
			s.always("in service", time.Hour, func(st Status) bool { return st.Ready && st.Rebuilds == 0 })
			w.change(func() { b.log = h[:1100] })
			s.serving(1100, 10*time.Second)
		}},
		{"ahead of the writer", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.addWriter("m", h[:900], 1)
			s := w.boot()
			s.until("ready", time.Minute, ready)
			s.always("in service", time.Hour, func(st Status) bool { return st.Ready && st.Rebuilds == 0 })
			if n := s.alarms.count("ends before"); n != 1 {
				t.Errorf("%d alarms: %v", n, s.alarms.list)
			}
		}},
		{"a bad snapshot is not tried again at once", func(t *testing.T, w *world) {
			// The manager b holds another history and offers a newer snapshot of it.
			b := w.add("b", fork[:2000], 1)
			b.Manager, b.offers = true, []int{1500}
			m := w.addWriter("m", h[:2000], 600)
			m.offers = []int{1400}
			w.disk.backAllowed = true
			s := w.boot()
			s.serving(2000, 5*time.Minute)
			if w.disk.position() != at(h, 2000) || w.fetches != 2 {
				t.Errorf("at %v after %d fetches", w.disk.position(), w.fetches)
			}
		}},
		{"a worker's offer does not go before a manager's", func(t *testing.T, w *world) {
			w.add("b", fork[:2000], 1).offers = []int{1500, 1600, 1700}
			w.addWriter("m", h[:2000], 600).offers = []int{1400}
			s := w.boot()
			s.serving(2000, time.Minute)
			if w.disk.position() != at(h, 2000) || w.fetches != 1 {
				t.Errorf("at %v after %d fetches", w.disk.position(), w.fetches)
			}
		}},
		{"another dataset all around", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			other := history(datasetID(2), 100, 1<<30, "")
			w.addWriter("m", other, 1)
			s := w.boot()
			time.Sleep(strangersAfter + 2*time.Second)
			synctest.Wait()
			select {
			case <-s.done:
			default:
				t.Fatalf("still running: %+v", s.r.Status())
			}
			if s.err == nil || !containsAll(s.err.Error(), datasetID(1).String(), datasetID(2).String()) {
				t.Errorf("error %v", s.err)
			}
		}},
		{"another dataset beside ours", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.add("x", history(datasetID(2), 5000, 1<<30, ""), 1).offers = []int{4000}
			s := w.boot()
			s.until("ready", time.Minute, ready)
			w.addWriter("m", h[:1500], 1)
			s.serving(1500, 10*time.Second)
			if w.fetches != 0 {
				t.Errorf("%d fetches", w.fetches)
			}
		}},
		{"an empty node takes the writer's dataset", func(t *testing.T, w *world) {
			w.add("x", history(datasetID(2), 200, 1<<30, ""), 1).offers = []int{100}
			w.addWriter("m", h[:1500], 1).offers = []int{1000}
			s := w.boot()
			s.serving(1500, time.Minute)
		}},
		{"disk full, then space", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			s := w.boot()
			s.serving(1000, 10*time.Second)
			for _, op := range []string{"append", "apply"} {
				before := len(m.log)
				w.disk.set(func() { w.disk.full[op] = true })
				w.change(func() { m.log = h[:before+100] })
				s.until("the error shows", time.Second, func(st Status) bool { return st.Err != "" })
				s.always("ready", 10*time.Minute, func(st Status) bool { return st.Ready && st.Applied.Seq == uint64(before) })
				w.disk.set(func() { w.disk.full[op] = false })
				s.serving(before+100, 2*diskMax)
				if n := s.alarms.count("disk is full"); n > 2 {
					t.Errorf("%d alarms", n)
				}
			}
		}},
		{"disk full within a batch, then space", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			w.addWriter("m", h[:1100], 1)
			w.disk.room = 40
			s := w.boot()
			s.until("the error shows", time.Minute, func(st Status) bool { return st.Err != "" && st.Applied.Seq < 1100 })
			w.disk.set(func() { w.disk.room = 0 })
			s.serving(1100, 2*diskMax)
		}},
		{"the own log is unreadable", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			s := w.boot()
			s.serving(1000, 10*time.Second)
			w.disk.set(func() { w.disk.broken["read"] = &txlog.CorruptError{Seq: 1001, Reason: "test"} })
			synctest.Wait()
			if n := s.alarms.count("unreadable"); n != 1 {
				t.Fatalf("%d alarms: %v", n, s.alarms.list)
			}
			select {
			case <-s.done: // twice in a row: the disk is at fault
				if s.err == nil {
					t.Error("no error")
				}
			default:
				t.Error("still running")
			}
			_ = m
		}},
		{"writer restart", func(t *testing.T, w *world) {
			w.holding(h, 0, 1000)
			m := w.addWriter("m", h[:1000], 1)
			s := w.boot()
			s.serving(1000, 10*time.Second)
			w.change(func() { m.unreachable = true })
			time.Sleep(20 * time.Second)
			w.change(func() { m.gone = true })
			time.Sleep(20 * time.Second)
			w.change(func() { m.gone, m.unreachable, m.log = false, false, h[:1010] })
			s.serving(1010, 6*time.Second)
		}},
		{"log and store disagree at start", func(t *testing.T, w *world) {
			for _, c := range []struct {
				name  string
				spoil func(d *disk)
			}{
				{"log begins after the store", func(d *disk) { d.base, d.entries = at(h, 1500), h[1500:1600:1600] }},
				{"log ends before the store", func(d *disk) { d.entries = h[:700:700] }},
				{"log holds other entries", func(d *disk) { d.entries = fork[:1100:1100] }},
				{"log is empty", func(d *disk) { d.begun, d.entries, d.logID = false, nil, txlog.DatasetID{} }},
				{"log is of another dataset", func(d *disk) { d.logID = datasetID(9) }},
			} {
				w.disk = newDisk(t)
				w.nodes = nil
				w.holding(h, 0, 1000)
				w.disk.set(func() { c.spoil(w.disk) })
				w.addWriter("m", h[:2000], 1)
				s := w.boot()
				s.serving(2000, 10*time.Second)
				if err := s.stop(); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.run(t, newWorld(t))
			})
		})
	}
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
