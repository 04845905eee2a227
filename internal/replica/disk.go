package replica

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Waiting for the disk.
const (
	diskBase = 250 * time.Millisecond
	diskMax  = 10 * time.Second
)

// ErrStuck is wrapped by errors about entries that are in the log, and can not be
// applied as long as something is wrong with this machine, such as a full disk.
var ErrStuck = errors.New("nothing can be applied for now")

// shortage says of which errors of reading only this machine is to blame, not
// what is read, so that it is worth waiting; "" of all others.
func shortage(err error) string {
	switch {
	case isAny(err, syscall.EMFILE, syscall.ENFILE):
		return "no file descriptors are left; waiting for some"
	case isAny(err, syscall.ENOMEM):
		return "no memory is left; waiting for some"
	}
	return ""
}

// obstacle is shortage for writing. What was written before is there to be
// served, so these are waited for, too.
func obstacle(err error) string {
	switch {
	case isAny(err, syscall.ENOSPC, syscall.EDQUOT):
		return "the disk is full; waiting for room"
	case isAny(err, syscall.EROFS):
		return "the disk is read-only; waiting for it to take writes again"
	case isAny(err, syscall.EIO, txlog.ErrFailed):
		return "the disk fails; trying again"
	}
	return shortage(err)
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// persist runs do until its error, if any, is one that waiting does not help
// against, which passing says.
func (r *Replica) persist(ctx context.Context, a activity, passing func(error) string, do func() error) error {
	var b backoff
	var waited string
	for {
		err := do()
		what := passing(err)
		if what == "" {
			if b.failures > 0 {
				r.board.stick(a, nil)
				r.log.Info("waiting is over", "for", waited, "err", err)
			}
			return err
		}
		if b.failures == 0 {
			waited = what
			r.log.Error(what, "err", err)
			r.board.stick(a, err)
		}
		b.fail(time.Now(), diskBase, diskMax)
		if err := sleep(ctx, time.Until(b.until), nil); err != nil {
			r.board.stick(a, nil)
			return err
		}
	}
}
