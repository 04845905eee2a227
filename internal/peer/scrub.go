package peer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/qs-peer/qs-peer/lmdbstore"
)

// Defaults of a scrub.
const (
	DefaultScrubEvery = 24 * time.Hour
	// DefaultScrubRate is in bytes per second.
	DefaultScrubRate = lmdbstore.DefaultScrubRate
)

const (
	scrubName = "scrub.json"
	// scrubRetry is how long the scrubber rests after something could not be read, or
	// could not be read yet.
	scrubRetry = time.Minute
)

// ScrubReport is what reading everything that a node holds showed: POST /v1/scrub.
type ScrubReport struct {
	Sound bool          `json:"sound"` // nothing is damaged, and everything could be read, but for what was skipped
	Parts []ScrubResult `json:"parts"`
}

// ScrubResult is what reading one part showed.
type ScrubResult struct {
	Part    string   `json:"part"`
	Bytes   int64    `json:"bytes"`   // read
	Seconds float64  `json:"seconds"` // that it took
	Read    string   `json:"read"`    // what was read, in words
	Damage  []string `json:"damage"`  // what was found; being repaired unless this is the writer
	Error   string   `json:"error,omitempty"`
	Skipped string   `json:"skipped,omitempty"` // why nothing could be compared, which says nothing of it
}

func (r *ScrubResult) sound() bool { return len(r.Damage) == 0 && r.Error == "" }

// scrubbed reads one part of a node at no more than rate bytes per second (0: no
// limit), and has what it finds mended by whom that concerns. An error says why not
// everything was read.
type scrubbed struct {
	name string
	read func(ctx context.Context, rate int64, r *ScrubResult) error
}

// scrubber reads everything that the node holds, one part after the other, once in a
// period, and when asked. One pass runs at a time.
type scrubber struct {
	parts   []scrubbed
	every   time.Duration // 0: only when asked
	rate    int64         // bytes per second; 0: no limit
	path    string        // of when each part was read last
	logger  *slog.Logger
	metrics *scrubMetrics
	busy    chan struct{} // holds a token while a pass runs

	last map[string]time.Time // run's own: when each part was read whole
}

type scrubMetrics struct {
	passes   *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	finished *prometheus.GaugeVec
	took     *prometheus.GaugeVec
	pieces   *prometheus.GaugeVec
}

func newScrubMetrics(reg prometheus.Registerer) *scrubMetrics {
	f := promauto.With(reg)
	gauge := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"part"})
	}
	return &scrubMetrics{
		passes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_scrub_passes_total", Help: "Times a part of the node was read and verified, by result: sound, damaged, failed, or skipped, if there was nothing to compare with.",
		}, []string{"part", "result"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_scrub_bytes_total", Help: "Bytes that were read to verify them.",
		}, []string{"part"}),
		finished: gauge("qs_scrub_last_finished_timestamp_seconds", "When a part was last read whole."),
		took:     gauge("qs_scrub_last_duration_seconds", "How long that took."),
		pieces: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "qs_scrub_mint_pieces",
			Help: "Pieces of the snapshot that the store was last compared with, by how much of them: all; part; none, as all of it changed since.",
		}, []string{"compared"}),
	}
}

// compared notes how much of a snapshot the store was compared with.
func (m *scrubMetrics) compared(c *mintComparison) {
	m.pieces.WithLabelValues("all").Set(float64(c.Live))
	m.pieces.WithLabelValues("part").Set(float64(c.Partly))
	m.pieces.WithLabelValues("none").Set(float64(c.File))
}

func newScrubber(o *Options, path string, parts []scrubbed, logger *slog.Logger, reg prometheus.Registerer) *scrubber {
	s := &scrubber{
		parts: parts, every: o.ScrubEvery, rate: o.ScrubRate, path: path, logger: logger, metrics: newScrubMetrics(reg),
		busy: make(chan struct{}, 1), last: map[string]time.Time{},
	}
	for _, p := range parts {
		for _, result := range []string{"sound", "damaged", "failed", "skipped"} {
			s.metrics.passes.WithLabelValues(p.name, result)
		}
	}
	return s
}

// names returns what can be asked for.
func (s *scrubber) names() []string {
	var names []string
	for _, p := range s.parts {
		names = append(names, p.name)
	}
	return names
}

// scrub reads the parts that wanted names, or all of them.
func (s *scrubber) scrub(ctx context.Context, wanted []string, rate int64) (ScrubReport, error) {
	for _, w := range wanted {
		if !slices.Contains(s.names(), w) {
			return ScrubReport{}, badRequest("part=%s: there are %s", w, strings.Join(s.names(), ", "))
		}
	}
	report := ScrubReport{Sound: true, Parts: []ScrubResult{}}
	for _, p := range s.parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		r, err := s.pass(ctx, p, rate)
		if err != nil {
			return ScrubReport{}, err
		}
		report.Parts = append(report.Parts, r)
		report.Sound = report.Sound && r.sound()
	}
	return report, nil
}

// pass reads one part. An error is one of ctx.
func (s *scrubber) pass(ctx context.Context, p scrubbed, rate int64) (ScrubResult, error) {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return ScrubResult{}, ctx.Err()
	}
	defer func() { <-s.busy }()
	began := time.Now()
	r := ScrubResult{Part: p.name, Damage: []string{}}
	err := p.read(ctx, rate, &r)
	took := time.Since(began)
	r.Seconds = took.Seconds()
	s.metrics.bytes.WithLabelValues(p.name).Add(float64(r.Bytes))
	result := "sound"
	switch {
	case ctx.Err() != nil:
		return ScrubResult{}, ctx.Err()
	case err != nil:
		result, r.Error = "failed", err.Error()
		s.logger.Warn("not everything could be scrubbed", "part", p.name, "err", err)
	case len(r.Damage) > 0:
		result = "damaged"
	case r.Skipped != "":
		result = "skipped"
	}
	s.metrics.passes.WithLabelValues(p.name, result).Inc()
	if err == nil && r.Skipped == "" {
		s.metrics.finished.WithLabelValues(p.name).SetToCurrentTime()
		s.metrics.took.WithLabelValues(p.name).Set(r.Seconds)
	}
	s.logger.Info("scrubbed", "part", p.name, "result", result, "read", r.Read, "skipped", r.Skipped, "bytes", r.Bytes, "took", took.Round(time.Millisecond))
	return r, nil
}

// run scrubs each part once in a period until ctx ends, also over restarts.
func (s *scrubber) run(ctx context.Context) {
	if s.every == 0 {
		return
	}
	s.recall(time.Now())
	for {
		next := slices.MinFunc(s.parts, func(a, b scrubbed) int { return s.last[a.name].Compare(s.last[b.name]) })
		if !pause(ctx, time.Until(s.last[next.name].Add(s.every))) {
			return
		}
		r, err := s.pass(ctx, next, s.rate)
		if err != nil {
			return
		}
		s.last[next.name] = time.Now()
		if r.Error != "" {
			s.last[next.name] = time.Now().Add(min(scrubRetry, s.every) - s.every)
		}
		if err := writeJSON(s.path, s.last); err != nil {
			s.logger.Warn("could not note when a part was scrubbed; a restart may do it again", "part", next.name, "err", err)
		}
	}
}

// recall finds out when each part was read last. What never was is due at a random
// moment of the period, so that the nodes of a fleet do not scrub all at once.
func (s *scrubber) recall(now time.Time) {
	noted := map[string]time.Time{}
	if text, err := os.ReadFile(s.path); err == nil {
		if err := json.Unmarshal(text, &noted); err != nil {
			s.logger.Warn("it is not known when this node was scrubbed", "path", s.path, "err", err)
		}
	}
	for _, p := range s.parts {
		at, ok := noted[p.name]
		if !ok || at.After(now) { // the clock was ahead then
			at = now.Add(-rand.N(s.every))
		}
		// By the clock that does not jump: after a jump back what was noted would lie ahead,
		// and that part would not be due again before the clock got there.
		s.last[p.name] = now.Add(at.Sub(now))
	}
}

// scrubbedParts are what a node holds.
func (w *wiring) scrubbedParts() []scrubbed {
	infirmary := w.disk.infirmary
	return []scrubbed{
		{"store", func(ctx context.Context, rate int64, r *ScrubResult) error {
			if w.disk.store.State().Pos.IsZero() {
				r.Read = "nothing, the store is empty"
				return nil
			}
			rep, err := w.disk.store.Scrub(ctx, lmdbstore.ScrubOptions{
				Rate: cmp.Or(rate, -1), Progress: func(done, _ int64) { r.Bytes = max(r.Bytes, done) },
			})
			if errors.Is(err, lmdbstore.ErrDamaged) {
				r.Damage = append(r.Damage, err.Error())
				infirmary.report(finding{Part: partStore, Err: err, Generation: rep.Generation})
				return nil
			}
			r.Bytes = max(r.Bytes, rep.Bytes)
			r.Read = fmt.Sprintf("%d pairs at entry %d", rep.Pairs, rep.Pos.Seq)
			return err
		}},
		{"log", func(ctx context.Context, rate int64, r *ScrubResult) error {
			rep, err := w.disk.log.Scrub(ctx, rate)
			r.Bytes, r.Read = rep.Bytes, fmt.Sprintf("%d entries in %d segments", rep.Entries, rep.Segments)
			for _, d := range rep.Damaged {
				r.Damage = append(r.Damage, d.Error()) // the log tells whom it concerns
			}
			return err
		}},
		{"snapshots", func(ctx context.Context, rate int64, r *ScrubResult) error {
			rep, err := w.mender.scrub(ctx, rate)
			r.Bytes, r.Read = rep.Bytes, fmt.Sprintf("%d snapshots", rep.Snapshots)
			if rep.Damaged > 0 {
				r.Damage = append(r.Damage, fmt.Sprintf("%d snapshots with %d bad pieces", rep.Damaged, rep.Bad))
			}
			return err
		}},
		{"mint", func(ctx context.Context, rate int64, r *ScrubResult) error {
			rep, err := w.mender.compare(ctx, rate)
			r.Bytes, r.Read, r.Skipped = rep.Bytes, rep.String(), rep.Skipped
			part, damage := partDigest, rep.Err()
			if errors.Is(err, lmdbstore.ErrDamaged) {
				part, damage, err = partStore, err, nil
			}
			if rep.Altered != nil { // which is reported by who mends it
				r.Damage = append(r.Damage, rep.Altered.Error())
			}
			if damage != nil {
				r.Damage = append(r.Damage, damage.Error())
				infirmary.report(finding{Part: part, Err: damage, Bytes: rep.Damaged, Generation: rep.Generation})
			}
			if err == nil && damage == nil {
				w.scrubber.metrics.compared(&rep)
			}
			return err
		}},
	}
}
