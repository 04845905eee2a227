package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// counting counts the connections that it accepts.
type counting struct {
	net.Listener
	n *atomic.Int64
}

func (c counting) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

// TestRetryStorm: 200 peers that refuse a node, whose caller does not wait by itself. What
// they see is counted where connections are accepted.
func TestRetryStorm(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	peers, seconds := 200, 4
	if raceDetector {
		peers, seconds = 50, 2
	}
	authority, server, worker := fleet(t)
	expired := func(t *testing.T) *trust.Credentials {
		// Good when it is opened, and soon no longer.
		end := time.Now().Add(4 * time.Second) // in whole seconds
		c, err := trust.Open(trust.Options{Files: authority.Issue(t, t.TempDir(), trusttest.Identity(trust.RoleWorker, "w1"), end)})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the certificate expires", func() bool { return time.Now().After(end) })
		return c
	}
	for _, s := range []struct {
		name   string
		client func(*testing.T) *trust.Credentials
		check  func(trust.Identity) error
		reason trust.Reason // as the peers see it
	}{
		{"the own certificate has expired", expired, nil, trust.Expired},
		{"they are not who they should be", func(*testing.T) *trust.Credentials { return worker },
			trust.Want("m2", trust.RoleManager), trust.Refused},
	} {
		t.Run(s.name, func(t *testing.T) {
			n := newNode(server)
			var accepted atomic.Int64
			var addrs []string
			for range peers {
				inner := listen(t)
				addrs = append(addrs, serveEchoOn(t, n, counting{inner, &accepted}, ListenOptions{}))
			}
			client := newNode(s.client(t))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var calls, served atomic.Int64
			var wg sync.WaitGroup
			wg.Go(func() {
				for ctx.Err() == nil {
					for _, addr := range addrs {
						calls.Add(1)
						c, err := client.Dial(ctx, addr, s.check)
						if err == nil {
							err = errors.Join(call(c), c.Close())
						}
						if err == nil {
							served.Add(1)
						}
						runtime.Gosched()
					}
				}
			})
			began := time.Now()
			// How long the first attempts take is the machine's affair.
			eventually(t, "each was called twice", func() bool { return calls.Load() >= int64(2*peers) })
			var perSecond []int64
			for last := accepted.Load(); len(perSecond) < seconds; {
				pause(t, time.Second)
				now := accepted.Load()
				perSecond, last = append(perSecond, now-last), now
			}
			most := int64(peers + retriesPerSecond + 5 + int(time.Since(began).Seconds()*retriesPerSecond))
			total := accepted.Load()
			cancel()
			wg.Wait()
			t.Logf("%d calls of a caller who does not wait made %d connections to %d peers; after each was tried, per second: %v",
				calls.Load(), accepted.Load(), peers, perSecond)
			if total > most {
				t.Errorf("%d connections, want at most %d", total, most)
			}
			for _, got := range perSecond {
				if got > 2*retriesPerSecond+5 { // turns that were not taken, too, and a slow second
					t.Errorf("%d connections in a second", got)
				}
			}
			if got := n.metric(t, "qs_edge_refused_total", string(s.reason)); got < float64(peers) {
				t.Errorf("%v are counted as %s by the peers\n%s", got, s.reason, n.log)
			}
			if served.Load() > 0 {
				t.Errorf("%d calls were served", served.Load())
			}
			if got := client.metric(t, "qs_edge_dials_total", dialHeldBack); got < float64(peers) {
				t.Errorf("only %v calls were held back: the caller did not storm", got)
			}
			if got := client.metric(t, "qs_edge_failing_addresses"); got != float64(peers) {
				t.Errorf("%v addresses count as failing", got)
			}
		})
	}
}

func TestDialResults(t *testing.T) {
	_, sc, cc := fleet(t)
	closed := listen(t)
	closed.Close()
	// One that accepts and hangs up.
	rude := listen(t)
	defer rude.Close()
	go func() {
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	good := func(t *testing.T) string { return serveEcho(t, newNode(sc), ListenOptions{}) }
	plain := func(t *testing.T) string { return serveEcho(t, newNode(nil), ListenOptions{}) }
	at := func(l net.Listener) func(*testing.T) string {
		return func(*testing.T) string { return l.Addr().String() }
	}
	for _, s := range []struct {
		name    string
		creds   *trust.Credentials
		ctx     context.Context
		addr    func(*testing.T) string
		results []string // of a call, which are all
		failing float64
	}{
		{"TLS", cc, t.Context(), good, []string{dialConnected}, 0},
		{"plain", nil, t.Context(), plain, []string{dialConnected}, 0},
		{"nobody listens", cc, t.Context(), at(closed), []string{dialUnreachable}, 1},
		{"it hangs up", cc, t.Context(), at(rude), []string{dialUnreachable}, 1},
		{"it hangs up, without TLS", nil, t.Context(), at(rude), []string{dialConnected, dialDropped}, 1},
		{"the caller goes away", cc, cancelled, good, []string{dialCancelled}, 0},
	} {
		t.Run(s.name, func(t *testing.T) {
			client := newNode(s.creds)
			addr := s.addr(t)
			err := dialCall(s.ctx, client.Edge, addr)
			if ok := fmt.Sprint(s.results) == fmt.Sprint([]string{dialConnected}); ok != (err == nil) {
				t.Error(err)
			}
			if got := client.metric(t, "qs_edge_dials_total"); got != float64(len(s.results)) {
				t.Errorf("%v results are counted, want %v", got, s.results)
			}
			for _, r := range s.results {
				if got := client.metric(t, "qs_edge_dials_total", r); got != 1 {
					t.Errorf("%v dials count as %s, want 1", got, r)
				}
			}
			if got := client.metric(t, "qs_edge_failing_addresses"); got != s.failing {
				t.Errorf("%v addresses fail, want %v", got, s.failing)
			}
			if s.failing == 0 {
				return
			}
			var held *BreakerError
			if _, err := client.Dial(t.Context(), addr, nil); !errors.As(err, &held) {
				t.Errorf("again at once: %v", err)
			}
		})
	}
}

// TestPeerComesBack: an address that failed is used again when it is there.
func TestPeerComesBack(t *testing.T) {
	_, sc, cc := fleet(t)
	nobody := listen(t)
	addr := nobody.Addr().String()
	nobody.Close()
	client := newNode(cc)
	for range 3 {
		if err := dialCall(t.Context(), client.Edge, addr); err == nil {
			t.Fatal("nobody was there")
		}
	}
	inner, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("somebody took the port: %v", err)
	}
	serveEchoOn(t, newNode(sc), inner, ListenOptions{})
	eventually(t, "it is called again", func() bool { return dialCall(t.Context(), client.Edge, addr) == nil })
	if got := client.metric(t, "qs_edge_failing_addresses"); got != 0 {
		t.Errorf("%v addresses count as failing", got)
	}
}
