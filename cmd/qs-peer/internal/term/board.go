package term

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Board shows the progress of several jobs, one line each: in place on a
// terminal, otherwise a line whenever a job's state changes. Its methods may be
// called concurrently, for different jobs.
type Board struct {
	out  io.Writer
	bars *mpb.Progress
	jobs []*job

	mu sync.Mutex // guards out when there are no bars
}

type job struct {
	name  string
	begun time.Time
	bar   *mpb.Bar

	mu    sync.Mutex // guards what follows
	state string
	style Style
	note  string
	took  time.Duration // 0 until finished
}

// boardSteps is the resolution of a board's bars.
const boardSteps = 1000

// noteWidth is how much of a note fits beside a bar on 80 columns.
const noteWidth = 26

// NewBoard shows jobs of the given names on w.
func NewBoard(ctx context.Context, w io.Writer, names []string) *Board {
	b := &Board{out: w}
	width := 0
	for _, name := range names {
		width = max(width, len(name))
	}
	if Is(w) {
		b.bars = mpb.NewWithContext(ctx, mpb.WithOutput(w), mpb.WithRefreshRate(80*time.Millisecond), mpb.WithWidth(24))
	}
	colours := Colours(w)
	for _, name := range names {
		j := &job{name: fmt.Sprintf("%-*s", width, name), begun: time.Now(), style: Dim}
		b.jobs = append(b.jobs, j)
		if b.bars == nil {
			continue
		}
		j.bar = b.bars.New(boardSteps, barStyle(),
			mpb.PrependDecorators(decor.Name("  "+j.name+"  ")),
			mpb.AppendDecorators(
				decor.Any(func(s decor.Statistics) string { return fmt.Sprintf(" %3d%% ", 100*s.Current/boardSteps) }),
				// The colour is not part of the text: it would count as its width.
				decor.Meta(decor.Any(func(decor.Statistics) string { return j.stateText() }), func(text string) string { return j.colour(text, colours) }),
				decor.Any(func(decor.Statistics) string { return j.rest() }),
			))
	}
	return b
}

// What stands right of the bar is always as long, so that bars are, too.

func (j *job) stateText() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprintf("%-13s", j.state)
}

func (j *job) colour(text string, colours bool) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !colours {
		return text
	}
	return j.style.In(text)
}

func (j *job) rest() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	took := j.took
	if took == 0 {
		took = time.Since(j.begun)
	}
	return fmt.Sprintf(" %5.1fs  %-*s", took.Seconds(), noteWidth, j.note)
}

// Set says how far job i is, in which state, and what else there is to say.
func (b *Board) Set(i int, fraction float64, state string, style Style, note string) {
	j := b.jobs[i]
	j.mu.Lock()
	changed := j.state != state
	j.state, j.style, j.note = state, style, note
	j.mu.Unlock()
	if j.bar != nil {
		// Finish completes the bar, not the last step.
		j.bar.SetCurrent(min(int64(fraction*boardSteps), boardSteps-1))
	} else if changed {
		b.say(j)
	}
}

// Finish ends job i: its line stays as it is then.
func (b *Board) Finish(i int, state string, style Style, note string) time.Duration {
	j := b.jobs[i]
	j.mu.Lock()
	j.state, j.style, j.note, j.took = state, style, note, time.Since(j.begun)
	took := j.took
	j.mu.Unlock()
	if j.bar != nil {
		j.bar.SetCurrent(boardSteps)
	} else {
		b.say(j)
	}
	return took
}

func (b *Board) say(j *job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	line := fmt.Sprintf("  %s  %5.1fs  %s", j.name, time.Since(j.begun).Seconds(), j.state)
	if j.note != "" {
		line += ", " + j.note
	}
	fmt.Fprintln(b.out, line)
}

// Close leaves the lines as they are. Call it once nothing is set any more.
func (b *Board) Close() {
	if b.bars == nil {
		return
	}
	for _, j := range b.jobs {
		j.bar.Abort(false)
	}
	b.bars.Wait()
}
