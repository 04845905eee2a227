package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/gossip/internal/mesh"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// packetSize is how many bytes memberlist puts into a packet with TLS: dozens of
// records with the hash of their certificates, and any one with all of them.
const packetSize = 16 << 10

// TLS is what makes a gossip in which everybody is who their certificate says. All
// but Refused are required.
type TLS struct {
	// Credentials sign this node's records and verify those of others.
	Credentials *trust.Credentials
	// Listener accepts the others' connections, with TLS.
	Listener net.Listener
	// Dial connects to an address, with TLS, and returns the connection if check is
	// content with who is there.
	Dial func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error)
	// Refused is told of everything that was refused, and of whom: an identity or an
	// address. The reason is one of few words. It does not block. Default: debug lines.
	Refused func(reason trust.Reason, who string, err error)
}

func (t *TLS) validate(f *Facts) error {
	if t.Credentials == nil || t.Listener == nil || t.Dial == nil {
		return errors.New("TLS needs credentials, a listener and a way to dial")
	}
	id := t.Credentials.Identity()
	if err := agree(f, id); err != nil {
		return err
	}
	return trust.Want("", trust.VerbGossip.Who()...)(id)
}

// listenTLS makes the transport, and says whether it is on this machine only.
func (g *Gossip) listenTLS(o Options) (_ memberlist.Transport, local bool, _ error) {
	m := mesh.New(mesh.Options{
		Listener: o.TLS.Listener, Dial: o.TLS.Dial, Where: g.view.where, Left: g.view.left,
		Message: g.takeMessage, State: g.takeState, Dropped: g.drop, Logger: o.Logger,
	})
	if err := g.metrics.register(m.Collectors()...); err != nil {
		return nil, false, errors.Join(err, m.Shutdown())
	}
	g.mesh = m
	m.Start()
	addr, ok := o.TLS.Listener.Addr().(*net.TCPAddr)
	return m, ok && addr.IP.IsLoopback(), nil
}

// takeMessage takes a broadcast record.
func (g *Gossip) takeMessage(from trust.Identity, b []byte) (bad bool) {
	g.metrics.received(viaBroadcast, len(b))
	return !g.hearFrom(from, b)
}

// takeState takes the other side's records in a push-pull.
func (g *Gossip) takeState(from trust.Identity, b []byte) (bad int) {
	g.metrics.received(viaPushPull, len(b))
	err := splitState(b, func(b []byte) error {
		if !g.hearFrom(from, b) {
			bad++
		}
		if bad >= mesh.MaxBad {
			return fmt.Errorf("%d bad records", bad)
		}
		return nil
	})
	if err != nil {
		g.drop(badRecord, from.String(), fmt.Errorf("state: %w", err))
		bad++
	}
	return bad
}

// hearFrom takes a record that a member passed on. It returns false if that member
// is to blame for it: nobody passes on what is not verified.
func (g *Gossip) hearFrom(from trust.Identity, b []byte) bool {
	r, err := g.notary.open(b, g.view.known, time.Now())
	var outcome string
	switch {
	case err == nil:
		g.learn(r)
		return true
	case errors.Is(err, errStale):
		outcome = "stale"
	case errors.Is(err, errNewerRecord):
		outcome = "newer"
	case errors.Is(err, errUnknownChain):
		outcome = "unknown_chain"
		select {
		case g.wanted <- from.Name:
		default: // it is known
		}
	default:
		g.metrics.records.WithLabelValues("bad").Inc()
		reason := trust.ReasonOf(err)
		g.drop(reason, from.String(), err)
		// It may have expired on its way, and others may have heard fewer of its owner.
		return reason == trust.Expired || reason == mesh.Flood
	}
	g.metrics.records.WithLabelValues(outcome).Inc()
	return true
}

// drop counts what was refused, and tells of it.
func (g *Gossip) drop(reason trust.Reason, who string, err error) {
	g.metrics.dropped.WithLabelValues(string(reason)).Inc()
	if g.refused != nil {
		g.refused(reason, who, err)
		return
	}
	g.log.Debug("refused", "reason", reason, "who", who, "error", err)
}
