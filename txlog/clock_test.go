package txlog

import (
	"testing"
	"time"
)

// TestClockJumps: times in the log never go back, whatever the writer's clock
// does, and the log can be opened and verified afterwards.
func TestClockJumps(t *testing.T) {
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	o := Options{Now: func() time.Time { return now }, SegmentBytes: minSegmentBytes}
	l := created(t, dir, o)
	for _, jump := range []time.Duration{time.Second, -time.Hour, 24 * 365 * time.Hour, -2 * 24 * 365 * time.Hour, time.Second, -now.Sub(time.Unix(0, 0)) - time.Hour} {
		now = now.Add(jump)
		appendN(t, l, 5, 700)
		must(t, l.Close())
		l = open(t, dir, o) // a restart in between
		appendN(t, l, 5, 700)
	}
	var last time.Time
	for _, e := range readTo(t, l, Pos{}, l.Head().Seq) {
		if e.Time.Before(last) {
			t.Fatalf("entry %d is of %v, the one before of %v", e.Seq, e.Time, last)
		}
		last = e.Time
	}
	if got := l.HeadTime(); !got.Equal(last) {
		t.Errorf("the head is of %v, its entry of %v", got, last)
	}
}
