package term

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// plainInterval is how often a progress that nobody watches is told.
const plainInterval = 5 * time.Second

// Meter shows how far one long job is: a bar on a terminal, otherwise a line
// every few seconds. A nil Meter shows nothing. One goroutine may use it.
type Meter struct {
	what  string
	total int64 // bytes; 0: unknown
	begun time.Time

	bars *mpb.Progress
	bar  *mpb.Bar
	note chan string // the latest text for the bar's right side

	out  io.Writer
	last time.Time
}

// NewMeter shows on w the progress of what, which is total bytes long (0:
// unknown).
func NewMeter(ctx context.Context, w io.Writer, what string, total int64) *Meter {
	m := &Meter{what: what, total: total, begun: time.Now(), out: w, last: time.Now()}
	if !Is(w) {
		return m
	}
	m.note = make(chan string, 1)
	shown := ""
	note := decor.Any(func(decor.Statistics) string {
		select {
		case shown = <-m.note:
		default:
		}
		return shown
	})
	m.bars = mpb.NewWithContext(ctx, mpb.WithOutput(w), mpb.WithRefreshRate(100*time.Millisecond), mpb.WithWidth(30))
	head := mpb.PrependDecorators(decor.Name(what + "  "))
	if total > 0 {
		m.bar = m.bars.New(total, barStyle(), head,
			mpb.AppendDecorators(decor.NewPercentage("%d", decor.WC{W: 5}), decor.Name("  "), note))
	} else {
		m.bar = m.bars.New(0, mpb.SpinnerStyle(), head, mpb.BarWidth(1), mpb.AppendDecorators(decor.Name("  "), note))
	}
	return m
}

func barStyle() mpb.BarFillerBuilder {
	return mpb.BarStyle().Lbound("").Filler("█").Tip("█").Padding("░").Rbound("")
}

// Set says how many bytes are done, and what else there is to say.
func (m *Meter) Set(done int64, format string, args ...any) {
	if m == nil {
		return
	}
	if m.bar != nil {
		select { // replace what was not shown yet
		case <-m.note:
		default:
		}
		m.note <- fmt.Sprintf(format, args...)
		if m.total > 0 {
			done = min(done, m.total-1) // Done completes the bar, not the last byte
		}
		m.bar.SetCurrent(done)
		return
	}
	if now := time.Now(); now.Sub(m.last) >= plainInterval {
		m.last = now
		share := ""
		if m.total > 0 {
			share = fmt.Sprintf("%.0f%%, ", 100*float64(done)/float64(m.total))
		}
		fmt.Fprintf(m.out, "%s: %s%s\n", m.what, share, fmt.Sprintf(format, args...))
	}
}

// Elapsed returns the time since NewMeter.
func (m *Meter) Elapsed() time.Duration { return time.Since(m.begun) }

// Done takes the bar away.
func (m *Meter) Done() {
	if m == nil || m.bar == nil {
		return
	}
	m.bar.Abort(true)
	m.bars.Wait()
}

// Spinner shows on a terminal that something is going on; elsewhere nothing.
type Spinner struct{ meter *Meter }

// NewSpinner shows on w that what runs.
func NewSpinner(ctx context.Context, w io.Writer, what string) *Spinner {
	if !Is(w) {
		return &Spinner{}
	}
	return &Spinner{NewMeter(ctx, w, what, 0)}
}

// Say tells what it is at.
func (s *Spinner) Say(what string) { s.meter.Set(0, "%s", what) }

// Done takes it away. It may be called twice.
func (s *Spinner) Done() {
	s.meter.Done()
	s.meter = nil
}
