package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// TestCrashAtEveryStep lets the power go before and after every durable change
// of a life, and starts a new replica on what is left: it must always converge,
// and the store must never go back (the disk checks that).
func TestCrashAtEveryStep(t *testing.T) {
	h := history(datasetID(1), 800, 1<<30, "")
	fork := history(datasetID(1), 800, 100, "other")
	for _, c := range []struct {
		name string
		set  func(w *world)
	}{
		{"bootstrap", func(w *world) {
			w.addWriter("m", h[:700], 300).offers = []int{400}
		}},
		{"from zero", func(w *world) {
			w.addWriter("m", h[:700], 1)
		}},
		{"follow", func(w *world) {
			w.holding(h, 0, 300)
			w.addWriter("m", h[:700], 1)
		}},
		{"rebuild while serving", func(w *world) {
			w.holding(h, 0, 100)
			w.addWriter("m", h[:700], 300).offers = []int{400}
		}},
		{"repair", func(w *world) {
			w.holding(fork, 0, 600)
			w.disk.backAllowed = true
			w.addWriter("m", h[:700], 300).offers = []int{400}
		}},
		{"repair from the disk", func(w *world) {
			w.holding(h, 0, 600)
			w.disk.backAllowed = true
			w.disk.held = []Held{w.heldAt(h, 400)}
			w.condemn(errors.New("page 7"))
			w.addWriter("m", h[:700], 300).offers = []int{500}
		}},
		{"repair of a store that is gone", func(w *world) {
			w.holding(h, 300, 600)
			w.disk.storePos = txlog.Pos{}
			w.disk.held = []Held{w.heldAt(h, 400)}
			w.condemn(errors.New("set aside"))
			w.addWriter("m", h[:700], 300)
		}},
		{"repair by a fetch", func(w *world) {
			w.holding(h, 0, 600)
			w.disk.backAllowed = true
			w.condemn(errors.New("page 7"))
			w.addWriter("m", h[:700], 300).offers = []int{500}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, after := range []bool{false, true} {
				for step := 1; ; step++ {
					var steps int
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t)
						c.set(w)
						w.disk.crashAt, w.disk.crashAfter = step, after
						s := w.boot()
						deadline := time.After(5 * time.Minute)
						for done := false; !done; {
							select {
							case <-s.done:
								done = true
							case <-deadline:
								done = true
							case <-time.After(time.Second):
								done = s.r.Status().State == Serving && s.r.Status().Applied.Seq == 700
							}
						}
						s.stop()
						w.disk.reboot()
						steps = w.disk.steps
						s = w.boot()
						s.serving(700, 5*time.Minute)
						if err := s.stop(); err != nil {
							t.Errorf("crash at step %d, after %t: %v", step, after, err)
						}
						if got := w.disk.position(); got != at(h, 700) {
							t.Errorf("crash at step %d, after %t: at %v", step, after, got)
						}
					})
					if steps < step {
						if step < 5 {
							t.Errorf("only %d steps", step-1)
						}
						break
					}
				}
			}
		})
	}
}

// TestRandomLives lets a fleet live through random events for virtual hours,
// and checks throughout that the replica serves only what the writer wrote,
// never goes back, stays in service, bounds its attempts, and in the end
// converges. QS_SEED repeats a run.
func TestRandomLives(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("QS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("QS_SEED=%d", seed)
	lives := 6
	if testing.Short() {
		lives = 2
	}
	for i := range lives {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomLife(t, rand.New(rand.NewPCG(seed, uint64(i)))) })
		})
	}
}

func randomLife(t *testing.T, rng *rand.Rand) {
	id := datasetID(1)
	h := history(id, 12_000, 1<<30, "")
	w := newWorld(t)
	written, first := 100, 1
	m := w.addWriter("m", h[:written], 1)
	var others []*node
	for i := range 4 {
		others = append(others, w.add(fmt.Sprintf("w%d", i), h[:written], 1))
	}
	luck := rand.New(rand.NewPCG(rng.Uint64(), 0)) // the replica's goroutines draw from it
	w.fetchErr = func(Offer, int) error {
		if luck.IntN(4) == 0 {
			return errNoSpace
		}
		return nil
	}
	s := w.boot()
	var was txlog.Pos
	everReady := false
	check := func() {
		synctest.Wait()
		pos := w.disk.position()
		if pos.Seq > uint64(len(h)) || pos != at(h, int(pos.Seq)) {
			t.Fatalf("the store is at %v, which nobody wrote", pos)
		}
		if pos.Seq < was.Seq {
			t.Fatalf("the store went back from %d to %d", was.Seq, pos.Seq)
		}
		was = pos
		st := s.r.Status()
		if st.State == Quarantined || st.State == Repairing {
			t.Fatalf("out of service: %+v", st)
		}
		if everReady && !st.Ready {
			t.Fatalf("no longer ready: %+v", st)
		}
		everReady = everReady || st.Ready
		select {
		case <-s.done:
			t.Fatalf("Run ended: %v", s.err)
		default:
		}
	}
	one := func() *node { return others[rng.IntN(len(others))] }
	began := time.Now()
	for range 300 {
		w.change(func() {
			switch rng.IntN(16) {
			case 0, 1, 2, 3:
				written = min(written+rng.IntN(300), len(h))
				m.log = h[:written]
			case 4, 5:
				n := one()
				n.log = h[:max(len(n.log), written-rng.IntN(50))]
			case 6:
				n := one()
				n.gone = !n.gone
			case 7:
				m.gone = !m.gone
			case 8:
				n := one()
				n.unreachable = !n.unreachable
			case 9:
				n := one()
				n.silent, n.frozen, n.garbage = rng.IntN(4) == 0, rng.IntN(4) == 0, rng.IntN(4) == 0
			case 10:
				m.offers = append(m.offers, written)
				if len(m.offers) > 2 {
					m.offers = m.offers[1:]
				}
			case 11:
				if len(m.offers) > 0 { // never past the oldest snapshot offered
					first = max(first, m.offers[0]-rng.IntN(100))
					m.First = uint64(first)
				}
			case 12:
				n := one()
				if len(n.log) > 200 {
					n.First = max(n.First, uint64(len(n.log)-200))
				}
			case 13:
				m.unreachable = !m.unreachable
			case 14:
				one().liar = rng.IntN(3) == 0
				for i, n := range others { // one liar at a time
					n.liar = n.liar && i == 0
				}
			case 15:
				n := one()
				n.quiet = !n.quiet
			}
		})
		switch rng.IntN(20) {
		case 0:
			op := []string{"append", "apply"}[rng.IntN(2)]
			w.disk.set(func() { w.disk.full[op] = !w.disk.full[op] })
		case 1:
			// A crash, and a new process.
			w.disk.set(func() { w.disk.crashAt, w.disk.crashAfter = w.disk.steps+1+rng.IntN(5), rng.IntN(2) == 0 })
			time.Sleep(time.Duration(rng.IntN(10)) * time.Second)
			s.stop()
			w.disk.reboot()
			s = w.boot()
			everReady = false
		}
		time.Sleep(time.Duration(rng.IntN(20_000)) * time.Millisecond)
		check()
	}
	if w.attempts > int(2*time.Since(began).Seconds()) {
		t.Errorf("%d attempts in %v", w.attempts, time.Since(began))
	}
	w.change(func() {
		m.gone, m.unreachable = false, false
		w.fetchErr = nil
		m.offers = []int{written}
	})
	w.disk.set(func() { clear(w.disk.full) })
	s.until("converged", 10*time.Minute, func(st Status) bool {
		return st.Ready && st.Applied == at(h, written)
	})
	check()
	t.Logf("%d entries, %d attempts, %d fetches, %d switches, %d alarms since the last start in %v",
		written, w.attempts, w.fetches, w.disk.activations, len(s.alarms.list), time.Since(began))
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}
