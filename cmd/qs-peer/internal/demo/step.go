package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// begin starts the next step: on a terminal, title is shown while it lasts.
func (s *show) begin(ctx context.Context, title string) *step {
	s.steps++
	return &step{s: s, number: s.steps, begun: time.Now(),
		spinner: term.NewSpinner(ctx, s.Output, fmt.Sprintf("%d. %s", s.steps, title))}
}

// step is a part of the demo.
type step struct {
	s       *show
	number  int
	begun   time.Time
	spinner *term.Spinner
}

// now says what the step is at.
func (st *step) now(format string, args ...any) { st.spinner.Say(fmt.Sprintf(format, args...)) }

// end says how the step ended, and how long it took.
func (st *step) end(format string, args ...any) time.Duration {
	took := time.Since(st.begun)
	st.spinner.Done()
	st.s.say(st.number, format+": %s", append(args, term.Duration(took))...)
	return took
}

func (s *show) say(step int, format string, args ...any) {
	number := fmt.Sprintf("%d. ", step)
	if term.Colours(s.Output) {
		number = term.Bold.In(number)
	}
	fmt.Fprintln(s.Output, number+fmt.Sprintf(format, args...))
}
