package torture

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// tail reads the writer's log into the truth until ctx ends, over all of the writer's
// lives, and returns what was wrong with it.
func (r *rig) tail(ctx context.Context) {
	as := r.observer
	client := p2p.NewClient(p2p.ClientOptions{Name: "observer", Dial: func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
		raw, err := r.writer().at.Dial(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, as.ClientConfig(check))
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		return conn, nil
	}})
	defer client.Close()
	for ctx.Err() == nil {
		err := r.tailOnce(ctx, client)
		var gone *txlog.DivergedError
		var trimmed *txlog.TrimmedError
		// A log that ends before is no other one: perhaps it is being restored. If it stays
		// like that, the fleet does not come to rest.
		if errors.As(err, &gone) && !gone.Have.IsZero() || errors.As(err, &trimmed) {
			r.violate(Violation{Rule: BrokenChain, Node: r.writer().name, At: time.Now(), Text: fmt.Sprintf("the writer's log does not go on after %v: %v", r.truth.Head(), err)})
			rest(ctx, time.Second)
		}
		rest(ctx, lostGap)
	}
}

func (r *rig) tailOnce(ctx context.Context, client *p2p.Client) error {
	w := r.writer()
	s, err := client.Stream(ctx, p2p.Target{Name: w.name, Addr: w.peer}, txlog.DatasetID{}, r.truth.Head())
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		part, err := s.Next(1 << 20)
		if err != nil {
			return err
		}
		for i := range part.Entries {
			for _, v := range r.truth.Append(&part.Entries[i]) {
				v.Node, v.At = w.name, time.Now()
				r.violate(v)
			}
		}
	}
}

func parseHash(s string) (txlog.Hash, error) { return txlog.ParseHash(s) }
