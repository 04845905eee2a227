package peer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrubs counts the passes over parts that take an hour each.
type scrubs struct {
	count map[string]int
	fails map[string]error
}

func (s *scrubs) part(name string) scrubbed {
	return scrubbed{name, func(ctx context.Context, _ int64, r *ScrubResult) error {
		s.count[name]++
		pause(ctx, time.Hour)
		r.Bytes, r.Read = 7, "something"
		return s.fails[name]
	}}
}

// TestScrubEvery: each part is read once in a period, restarts or not, what could not
// be read sooner, and the first time at any moment of the period.
func TestScrubEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), scrubName)
		s := &scrubs{count: map[string]int{}, fails: map[string]error{}}
		const every = 24 * time.Hour
		live := func(for_ time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), for_)
			defer cancel()
			parts := []scrubbed{s.part("store"), s.part("log")}
			newScrubber(&Options{ScrubEvery: every}, path, parts, slog.New(slog.DiscardHandler), prometheus.NewRegistry()).run(ctx)
		}
		live(every + 2*time.Hour) // a period, and what a pass takes
		if s.count["store"] < 1 || s.count["log"] < 1 {
			t.Fatalf("in the first period: %v", s.count)
		}
		before := maps.Clone(s.count)
		for range 24 * 7 { // restarted every hour and a half, for ten days
			live(90 * time.Minute)
		}
		for part, n := range s.count {
			// One that a restart cut short is begun again, and one may be just over.
			if got := n - before[part]; got < 8 || got > 24 {
				t.Errorf("%s was read %d times in ten days", part, got)
			}
		}
		before = maps.Clone(s.count)
		s.fails["log"] = errors.New("input/output error")
		live(10 * every)
		if got := s.count["log"] - before["log"]; got < 100 {
			t.Errorf("what can not be read was tried %d times in ten days", got)
		}
		if got := s.count["store"] - before["store"]; got < 9 || got > 11 {
			t.Errorf("the rest was read %d times in ten days", got)
		}
	})
}

// TestScrubClockJumps: what was noted by the wall clock is kept by the one that does not
// jump, and what was noted ahead of now is due within a period.
func TestScrubClockJumps(t *testing.T) {
	const every = 24 * time.Hour
	path, now := filepath.Join(t.TempDir(), scrubName), time.Now()
	noted := map[string]time.Time{"store": now.Add(-time.Hour), "log": now.AddDate(1, 0, 0), "mint": now.AddDate(-1, 0, 0)}
	if err := writeJSON(path, noted); err != nil {
		t.Fatal(err)
	}
	var parts []scrubbed
	for _, name := range []string{"store", "log", "mint", "snapshots"} {
		parts = append(parts, scrubbed{name: name})
	}
	s := newScrubber(&Options{ScrubEvery: every}, path, parts, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	s.recall(now)
	for name, at := range s.last {
		if !strings.Contains(at.String(), " m=") {
			t.Errorf("%s: %v follows the wall clock", name, at)
		}
		if due := at.Add(every).Sub(now); due > every || name == "store" && due.Round(time.Second) != every-time.Hour || name == "mint" && due > 0 {
			t.Errorf("%s is due in %v", name, due)
		}
	}
}

// TestScrubNow: one pass at a time, of the parts that were asked for, and the report
// says what was found.
func TestScrubNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scrubs{count: map[string]int{}, fails: map[string]error{"log": errors.New("input/output error")}}
		scrub := newScrubber(&Options{}, filepath.Join(t.TempDir(), scrubName), []scrubbed{s.part("store"), s.part("log")},
			slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		began := time.Now()
		done := make(chan ScrubReport)
		for range 2 {
			go func() {
				r, err := scrub.scrub(t.Context(), []string{"store"}, 0)
				if err != nil {
					t.Error(err)
				}
				done <- r
			}()
		}
		for range 2 {
			if r := <-done; !r.Sound || len(r.Parts) != 1 || r.Parts[0].Bytes != 7 || r.Parts[0].Seconds != 3600 {
				t.Errorf("%+v", r)
			}
		}
		if took := time.Since(began); took != 2*time.Hour {
			t.Errorf("two passes took %v", took)
		}
		if r, err := scrub.scrub(t.Context(), nil, 0); err != nil || r.Sound || len(r.Parts) != 2 || r.Parts[1].Error == "" {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := scrub.scrub(t.Context(), []string{"store", "moon"}, 0); !is[*badRequestError](err) {
			t.Errorf("a part that is none: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := scrub.scrub(ctx, nil, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
