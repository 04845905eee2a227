package peer

import (
	"fmt"

	"github.com/qs-peer/qs-peer/internal/replica"
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
