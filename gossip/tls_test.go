package gossip_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// secured is a node that speaks TLS, over real sockets.
type secured struct {
	*gossip.Gossip
	creds *trust.Credentials
	reg   *prometheus.Registry

	mu      sync.Mutex // guards refused
	refused map[trust.Reason][]string
}

// dialer dials as internal/edge does, but for its back-off.
func dialer(c *trust.Credentials) func(context.Context, string, func(trust.Identity) error) (net.Conn, error) {
	return func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
		d := tls.Dialer{Config: c.ClientConfig(check)}
		return d.DialContext(ctx, "tcp", addr)
	}
}

// startTLS starts a node of these credentials, which joins the given addresses.
func startTLS(t *testing.T, c *trust.Credentials, join ...string) *secured {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", c.ServerConfig())
	if err != nil {
		t.Fatal(err)
	}
	n := &secured{creds: c, reg: prometheus.NewRegistry(), refused: make(map[trust.Reason][]string)}
	id := c.Identity()
	n.Gossip, err = gossip.Start(gossip.Options{
		Facts: gossip.Facts{Name: id.Name, Role: gossip.Role(id.Role), Colo: id.Colo, State: "joining"},
		Join:  join,
		TLS: &gossip.TLS{Credentials: c, Listener: ln, Dial: dialer(c), Refused: func(r trust.Reason, who string, err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.refused[r] = append(n.refused[r], fmt.Sprintf("%s: %v", who, err))
		}},
		Registerer: n.reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// refusals returns what the node said of a reason.
func (n *secured) refusals(r trust.Reason) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refused[r]
}

// together reports whether all see each other alive, with the facts they state.
func together(nodes ...*secured) bool {
	for _, n := range nodes {
		alive := 0
		for _, m := range n.Members() {
			if m.Liveness == gossip.Alive && m.Role != "" {
				alive++
			}
		}
		if alive != len(nodes) {
			return false
		}
		for _, other := range nodes {
			own := other.Members()[0]
			if m, ok := find(n.Gossip, own.Name); !ok || m.Role != own.Role || m.State != own.State || m.Applied != own.Applied {
				return false
			}
		}
	}
	return true
}

func (n *secured) set(t *testing.T, state string, seq uint64) {
	t.Helper()
	if err := n.Update(func(f *gossip.Facts) { f.State = state; f.Applied.Seq = seq }); err != nil {
		t.Fatal(err)
	}
}

// Five nodes find each other, hear updates, and notice a leave and a crash.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca := trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	nodes := []*secured{m}
	for i := range 4 {
		nodes = append(nodes, startTLS(t, ca.Open(t, trust.RoleWorker, fmt.Sprint("w", i)), m.Addr().String()))
	}
	begin := time.Now()
	waitFor(t, "all know each other", func() bool { return together(nodes...) })
	t.Logf("5 nodes know each other after %v", time.Since(begin).Round(time.Millisecond))
	for i, n := range nodes {
		n.set(t, "serving", uint64(i))
	}
	waitFor(t, "all updates are everywhere", func() bool { return together(nodes...) })
	if err := nodes[4].Leave(5 * time.Second); err != nil {
		t.Errorf("leave: %v", err)
	}
	waitFor(t, "a leave is noticed", func() bool {
		m, _ := find(m.Gossip, "w3")
		return m.Liveness == gossip.Left
	})
	nodes[3].Close()
	waitFor(t, "a crash is noticed", func() bool {
		m, _ := find(nodes[1].Gossip, "w2")
		return m.Liveness == gossip.Failed && m.Role == gossip.Worker
	})
	for _, n := range nodes {
		n.mu.Lock()
		for reason, all := range n.refused {
			t.Errorf("%s refused (%s): %v", n.Members()[0].Name, reason, all)
		}
		n.mu.Unlock()
	}
}
