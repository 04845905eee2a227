package replica

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// heldAt is a snapshot on the disk.
func (w *world) heldAt(h []txlog.Entry, seq int) Held {
	pos := at(h, seq)
	id := txlog.DatasetID(h[0].Ops[0].Value)
	return Held{Dataset: id, Pos: pos, InfoHash: infoHash(pos, false), Size: 1000, File: "snapshot:" + id.String() + ":" + pos.String()}
}

// condemn puts the store in quarantine.
func (w *world) condemn(reason error) { fakeQuarantine{w.disk}.Impose(reason) }

// tries returns how mending was tried.
func (w *world) tries() []string {
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	return slices.Clone(w.disk.tried)
}

func TestRepairs(t *testing.T) {
	h := history(datasetID(1), 1000, 1<<30, "")
	fork := history(datasetID(1), 1000, 300, "other")
	damage := errors.New("page 7 is damaged")
	out := func(st Status) bool { return !st.Ready && (st.State == Quarantined || st.State == Repairing) }
	// serving begins with a worker that serves entry 700, all there is.
	serving := func(w *world, m *node) *sim {
		w.holding(h, 0, 700)
		w.disk.backAllowed, w.disk.installing = true, time.Second
		s := w.boot()
		s.serving(700, time.Minute)
		return s
	}
	for _, c := range []struct {
		name string
		run  func(t *testing.T, w *world, m *node)
	}{
		{"from the disk, without a byte from others", func(t *testing.T, w *world, m *node) {
			w.disk.held = []Held{w.heldAt(h, 500)}
			s := serving(w, m)
			resets := w.disk.base
			w.condemn(damage)
			s.until("out of service", time.Second, func(st Status) bool { return !st.Ready })
			s.serving(700, time.Minute)
			if w.fetches != 0 || w.disk.base != resets {
				t.Errorf("%d fetches, the log begins after %v", w.fetches, w.disk.base)
			}
			if got := w.tries(); !slices.Equal(got, []string{"store_local true"}) {
				t.Errorf("tried %q", got)
			}
			states := []State{}
			for _, st := range s.told {
				if st.State == CatchingUp {
					continue // no time passes in it here, so it may be over before it is told
				}
				if n := len(states); n == 0 || states[n-1] != st.State {
					states = append(states, st.State)
				}
			}
			if i := slices.Index(states, Quarantined); i < 0 || !slices.Equal(states[i:], []State{Quarantined, Repairing, Serving}) {
				t.Errorf("told %v", states)
			}
		}},
		{"found by applying", func(t *testing.T, w *world, m *node) {
			w.disk.held = []Held{w.heldAt(h, 500)}
			s := serving(w, m)
			w.disk.set(func() { w.disk.damaged = true })
			w.change(func() { m.log = h[:800] })
			s.until("out of service", 5*time.Second, func(st Status) bool { return !st.Ready })
			s.serving(800, time.Minute)
			if w.fetches != 0 {
				t.Errorf("%d fetches", w.fetches)
			}
		}},
		{"what is on the disk is no good", func(t *testing.T, w *world, m *node) {
			w.disk.held = []Held{w.heldAt(h, 500)}
			s := serving(w, m)
			w.disk.held[0].File = "not a snapshot"
			w.change(func() { m.offers = []int{600} })
			w.condemn(damage)
			s.serving(700, time.Minute)
			want := []string{"store_local false", "store_local false", "store_local false", "store_mint false", "store_bootstrap true"}
			if got := w.tries(); !slices.Equal(got, want) || w.fetches != 1 {
				t.Errorf("tried %q, %d fetches", got, w.fetches)
			}
		}},
		{"salvaged", func(t *testing.T, w *world, m *node) {
			s := serving(w, m)
			w.change(func() { m.offers, w.salvages = []int{600}, true })
			w.condemn(damage)
			s.serving(700, time.Minute)
			if got := w.tries(); !slices.Equal(got, []string{"store_local false", "store_mint true"}) {
				t.Errorf("tried %q", got)
			}
		}},
		{"nothing is offered for an hour", func(t *testing.T, w *world, m *node) {
			s := serving(w, m)
			w.condemn(damage)
			s.until("out of service", time.Second, out)
			s.always("out of service", time.Hour, out)
			w.change(func() { m.offers = []int{600} })
			s.serving(700, time.Minute)
		}},
		{"the second relapse is taken a rung further", func(t *testing.T, w *world, m *node) {
			w.disk.held = []Held{w.heldAt(h, 500)}
			s := serving(w, m)
			w.change(func() { m.offers = []int{600} })
			for range 3 {
				w.condemn(damage)
				s.until("out of service", time.Second, func(st Status) bool { return !st.Ready })
				s.serving(700, time.Minute)
			}
			if got, want := w.tries(), []string{"store_local true", "store_local true", "store_mint false", "store_bootstrap true"}; !slices.Equal(got, want) {
				t.Errorf("tried %q", got)
			}
			time.Sleep(relapseWithin)
			w.condemn(damage)
			s.until("out of service", time.Second, func(st Status) bool { return !st.Ready })
			s.serving(700, time.Minute)
			if got := w.tries(); got[len(got)-1] != "store_local true" {
				t.Errorf("tried %q", got)
			}
		}},
		{"a restart does not serve what is in quarantine", func(t *testing.T, w *world, m *node) {
			s := serving(w, m)
			w.condemn(damage)
			s.until("out of service", time.Second, out)
			s.stop()
			w.change(func() { m.gone = true })
			s = w.boot()
			s.always("out of service", time.Hour, func(st Status) bool { return !st.Ready })
			w.change(func() { m.gone, m.offers = false, []int{600} })
			s.serving(700, time.Minute)
		}},
		{"nor what diverged, of which the log is no better", func(t *testing.T, w *world, m *node) {
			w.holding(fork, 0, 700)
			w.disk.backAllowed = true
			w.disk.held = []Held{w.heldAt(h, 200)}
			w.change(func() { m.First = 400 }) // so that nothing on the disk will do
			s := w.boot()
			s.until("out of service", time.Minute, out)
			s.stop()
			w.change(func() { m.gone = true })
			s = w.boot()
			s.always("out of service", time.Hour, func(st Status) bool { return !st.Ready })
			w.change(func() { m.gone, m.offers = false, []int{600} })
			s.serving(700, time.Minute)
			if got := w.disk.position(); got != at(h, 700) {
				t.Errorf("serving %v", got)
			}
		}},
		{"what diverged is mended from the disk if the fleet's log continues that", func(t *testing.T, w *world, m *node) {
			w.holding(fork, 0, 700)
			w.disk.backAllowed = true
			w.disk.held = []Held{w.heldAt(h, 200)}
			s := w.boot()
			s.until("out of service", time.Minute, func(st Status) bool { return !st.Ready })
			s.serving(700, time.Minute)
			if got := w.disk.position(); got != at(h, 700) || w.fetches != 0 {
				t.Errorf("serving %v after %d fetches", got, w.fetches)
			}
		}},
		{"a store that was set aside, and a log that has been trimmed", func(t *testing.T, w *world, m *node) {
			w.holding(h, 300, 700)
			w.disk.storePos = txlog.Pos{}
			w.disk.held = []Held{w.heldAt(h, 400)}
			w.condemn(damage)
			w.change(func() { m.First = 600 })
			s := w.boot()
			s.serving(700, time.Minute)
			if w.fetches != 0 || w.disk.base != at(h, 300) {
				t.Errorf("%d fetches, the log begins after %v", w.fetches, w.disk.base)
			}
		}},
		{"while the next copy catches up", func(t *testing.T, w *world, m *node) {
			w.holding(h, 0, 100)
			w.change(func() { m.First, m.offers = 300, []int{400} })
			s := w.boot()
			s.until("catching up beside the old copy", time.Minute, func(st Status) bool { return st.Ready && st.Total > 0 })
			w.disk.set(func() { w.disk.full["apply"] = true })
			s.until("prepared", time.Minute, func(st Status) bool { return st.Ready && st.State == CatchingUp })
			w.condemn(damage)
			s.until("on the new copy", time.Minute, func(st Status) bool { return st.Applied.Seq == 400 })
			w.disk.set(func() { w.disk.full["apply"] = false })
			s.serving(700, time.Minute)
			if w.fetches != 1 {
				t.Errorf("%d fetches", w.fetches)
			}
		}},
		{"a fork stops the repair too", func(t *testing.T, w *world, m *node) {
			w.signed = newFakeHeads()
			w.signed.sign(at(h, 700), h[699].Time)
			w.disk.held = []Held{w.heldAt(h, 500)}
			s := serving(w, m)
			w.signed.stop(errors.New("two histories"))
			s.until("standing", time.Minute, func(st Status) bool { return st.State == Quarantined && st.Ready })
			w.condemn(damage)
			s.until("serving nothing", time.Second, func(st Status) bool { return !st.Ready })
			s.always("serving nothing", time.Hour, func(st Status) bool { return !st.Ready && st.State == Quarantined })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.addWriter("m", h[:700], 1)
				c.run(t, w, m)
				w.disk.onCrash()
				synctest.Wait()
			})
		})
	}
}

// Nobody repairs a writer: it stands, serves nothing, and lets those go who wait.
func TestWriterInQuarantine(t *testing.T) {
	h := history(datasetID(1), 100, 1<<30, "")
	for _, applying := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.holding(h, 0, 50)
			r, err := New(Config{Name: "self", Log: fakeLog{w.disk}, Store: fakeStore{w.disk}, Quarantine: fakeQuarantine{w.disk}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- r.Run(ctx) }()
			synctest.Wait()
			if st := r.Status(); !st.Ready || st.State != Serving {
				t.Fatalf("%+v", st)
			}
			waiting := make(chan error)
			go func() { waiting <- r.WaitApplied(ctx, 60) }()
			if applying {
				w.disk.set(func() { w.disk.damaged, w.disk.entries = true, h[:60] })
			} else {
				w.condemn(errors.New("page 7"))
			}
			if err := <-waiting; !errors.Is(err, ErrStopped) {
				t.Errorf("waiting ended with %v", err)
			}
			synctest.Wait()
			if st := r.Status(); st.Ready || st.State != Quarantined || st.Err == "" {
				t.Errorf("%+v", st)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
