package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

// writer takes transactions. On a node that is not the dataset's writer it
// refuses them, and says who is.
type writer struct {
	node  *node
	self  string
	log   *txlog.Log
	fleet *fleet
	tls   bool // the fleet speaks TLS
	// applied waits until reads here see an entry.
	applied func(ctx context.Context, seq uint64) error
	// halt returns why the log must not be continued.
	halt func() error
	// stuck returns why nothing can be applied for now: what would be written then
	// could not be read, and takes room that is needed.
	stuck func() error
}

// check returns why this node takes no writes, nil if it does.
func (w *writer) check() error {
	if w.node.writer() {
		return cmp.Or(w.halt(), w.stuck())
	}
	return w.elsewhere(w.self + " takes no writes")
}

// elsewhere refuses what the writer should be asked to do.
func (w *writer) elsewhere(what string) error {
	e := &notWriterError{what: what}
	if m, ok := w.fleet.writer(w.log.Dataset()); ok {
		e.name, e.url = m.Name, w.url(m)
	}
	return e
}

// url returns where a member answers HTTP; empty if it does not.
func (w *writer) url(m gossip.Member) string {
	switch {
	case m.HTTPAddr == "":
		return ""
	case w.tls:
		return "https://" + m.HTTPAddr
	}
	return "http://" + m.HTTPAddr
}

// write makes ops one entry and returns once that is on stable storage and
// reads here see it.
func (w *writer) write(ctx context.Context, ops []txlog.Op) (txlog.Pos, error) {
	if err := w.check(); err != nil {
		return txlog.Pos{}, err
	}
	pos, err := w.log.Append(ctx, ops)
	switch {
	case errors.Is(err, txlog.ErrFailed):
		return txlog.Pos{}, fmt.Errorf("%w: whether this was written will be seen when the disk works again; look for it before you write it again", err)
	case err != nil:
		return txlog.Pos{}, err
	}
	if err := w.applied(ctx, pos.Seq); err != nil {
		if halt := w.halt(); halt != nil && errors.Is(err, replica.ErrStopped) {
			return txlog.Pos{}, &unappliedError{pos.Seq, halt}
		}
		return txlog.Pos{}, fmt.Errorf("entry %d is written and will be applied, but waiting for that failed: %w", pos.Seq, err)
	}
	return pos, nil
}
