package peer

import (
	"context"
	"errors"
	"fmt"
)

// cleanup collects how to stop what was started, and does it in reverse order.
type cleanup struct {
	steps []step
}

type step struct {
	what string
	stop func(context.Context) error
}

func (c *cleanup) add(what string, stop func(context.Context) error) {
	c.steps = append(c.steps, step{what, stop})
}

func (c *cleanup) addClose(what string, stop func() error) {
	c.add(what, func(context.Context) error { return stop() })
}

// run stops everything, whatever fails on the way, and forgets it.
func (c *cleanup) run(ctx context.Context) error {
	var errs []error
	for len(c.steps) > 0 {
		last := c.steps[len(c.steps)-1]
		c.steps = c.steps[:len(c.steps)-1]
		if err := last.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", last.what, err))
		}
	}
	return errors.Join(errs...)
}
