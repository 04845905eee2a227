package peer

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

// notWriterError refuses what only another node does.
type notWriterError struct {
	what string
	name string // of the node to ask; empty if unknown
	url  string
}

func (e *notWriterError) Error() string {
	switch {
	case e.url != "":
		return fmt.Sprintf("%s: send it to %s at %s", e.what, e.name, e.url)
	default:
		return e.what + ", and no live node that does is known here: try again when it is back"
	}
}

// notReadyError refuses reads on a node that holds nothing it may serve.
type notReadyError struct{ state replica.State }

func (e *notReadyError) Error() string {
	return fmt.Sprintf("this node is %s and serves no reads yet: ask another one, or try again later", e.state)
}

// unappliedError is about a write that was under way when this node stopped to take any.
// It does not wrap why, which would say that nothing was written.
type unappliedError struct {
	seq uint64
	why error
}

func (e *unappliedError) Error() string {
	return fmt.Sprintf("entry %d is written, and this node stopped before reads could see it: look for it before you write it again: %v", e.seq, e.why)
}

// badRequestError is a request that can not be understood.
type badRequestError struct{ reason string }

func (e *badRequestError) Error() string { return e.reason }

func badRequest(format string, args ...any) error {
	return &badRequestError{fmt.Sprintf(format, args...)}
}

// notTextError refuses to put bytes into JSON that are not text.
type notTextError struct {
	what string // "key" or "value"
	key  []byte
}

func (e *notTextError) Error() string {
	return fmt.Sprintf("the %s of %q is not valid UTF-8: ask with base64=true", e.what, e.key)
}

// noRoom reports whether a full disk is why something could not be written.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// diskFails reports whether a disk that takes no writes, or fails, is why something
// could not be done.
func diskFails(err error) bool {
	return errors.Is(err, txlog.ErrFailed) || errors.Is(err, replica.ErrStuck) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS)
}
