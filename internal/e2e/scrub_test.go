package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// TestScrubPeriod damages a value that nobody reads, under a worker that nobody asks to
// scrub: it is found within one period of its own clock and what a pass over everything
// takes, and mended.
func TestScrubPeriod(t *testing.T) {
	if os.Getenv("QS_E2E") == "" {
		t.Skip("needs the built binary: run make e2e")
	}
	t.Parallel()
	const every = 4 * time.Second
	f := newStory(t, os.Getenv("QS_PEER"), false)
	m := f.start("manager", "m1")
	write := func(from, to int, more ...map[string]string) {
		t.Helper()
		ops := more
		for i := from; i < to; i++ {
			ops = append(ops, map[string]string{"op": "put", "key": fmt.Sprintf("key-%06d", i), "value": strings.Repeat("v", 400)})
		}
		if err := m.Call(t.Context(), http.MethodPost, "/v1/txn", map[string]any{"ops": ops}, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 5000)
	f.run("snapshot", "--addr", m.Addrs.HTTP)
	w, err := f.Start(t.Context(), "worker", "w1", "--scrub-every", every.String())
	if err != nil {
		t.Fatal(err)
	}
	f.converged(time.Minute, m, "m1", "w1")
	// Not of the snapshot, so that its copy in the store is the only one on this disk.
	write(5000, 10000, map[string]string{"op": "put", "key": "rare", "value": strings.Repeat("r", 400)})
	f.converged(time.Minute, m, "m1", "w1")

	metrics := func() (of func(name string) float64) {
		t.Helper()
		var text string
		if err := w.Call(t.Context(), http.MethodGet, "/metrics", nil, &text); err != nil {
			t.Fatal(err)
		}
		return func(name string) float64 {
			for line := range strings.Lines(text) {
				if value, ok := strings.CutPrefix(line, name+" "); ok {
					v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
					if err != nil {
						t.Fatal(err)
					}
					return v
				}
			}
			t.Fatalf("there is no metric %s", name)
			return 0
		}
	}
	// One pass is over, so that the next is due at a known time.
	if err := fleet.Until(t.Context(), time.Minute, func() error {
		if metrics()(`qs_scrub_passes_total{part="store",result="sound"}`) == 0 {
			return errors.New("it was not scrubbed yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	damage(t, environment(t, w), "rrrrrrrr")
	damaged := time.Now()
	passes := func() (sum time.Duration) { // the others may be before the store's
		of := metrics()
		for _, part := range []string{"store", "log", "snapshots", "mint"} {
			sum += time.Duration(of(`qs_scrub_last_duration_seconds{part="`+part+`"}`) * float64(time.Second))
		}
		return sum
	}
	var found time.Duration
	if err := fleet.Until(t.Context(), time.Minute, func() error {
		if metrics()(`qs_damage_findings_total{part="store"}`) == 0 {
			return errors.New("the damage was not found")
		}
		found = time.Since(damaged)
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, w.Tail(20))
	}
	const looks = time.Second // how often this test does, on a busy machine
	if took := passes(); found > every+took+looks {
		t.Errorf("found after %v; the period is %v, and a pass took %v", found, every, took)
	} else {
		t.Logf("found after %v; the period is %v, and a pass took %v", found, every, took)
	}
	if err := fleet.Until(t.Context(), time.Minute, func() error {
		if metrics()(`qs_repairs_total{kind="store_local",result="ok"}`) == 0 {
			return errors.New("it is not repaired yet")
		}
		return w.Call(t.Context(), http.MethodGet, "/readyz", nil, nil)
	}); err != nil {
		t.Fatalf("%v\n%s", err, w.Tail(20))
	}
	f.converged(time.Minute, m, "m1", "w1")
	var value string
	if err := w.Call(t.Context(), http.MethodGet, "/v1/kv/rare", nil, &value); err != nil || value != strings.Repeat("r", 400) {
		t.Errorf("after the repair: %.20q, %v", value, err)
	}
}
