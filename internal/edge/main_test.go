package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(abuserEnv); addr != "" {
		os.Exit(abuse(addr))
	}
	goleak.VerifyTestMain(m)
}

// node is an Edge whose log and metrics a test looks at.
type node struct {
	*Edge
	reg *prometheus.Registry
	log *lines
}

func newNode(c *trust.Credentials) *node { return newNodeWith(Options{Credentials: c}) }

func newNodeWith(o Options) *node {
	n := &node{reg: prometheus.NewRegistry(), log: &lines{}}
	o.Registerer, o.Logger = n.reg, slog.New(slog.NewTextHandler(n.log, nil))
	n.Edge = New(o)
	return n
}

// metric returns the sum of a metric over the series with all of these label values.
func (n *node) metric(t testing.TB, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := n.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			have := make(map[string]bool)
			for _, l := range m.GetLabel() {
				have[l.GetValue()] = true
			}
			for _, l := range labels {
				if !have[l] {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// lines keeps what is logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// with counts the lines that have all of these parts.
func (l *lines) with(parts ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for line := range strings.Lines(l.buf.String()) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		n++
	}
	return n
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// home is an address of this process alone: at a port of 127.0.0.1 come those, too, who
// look for a test that had it before, and connections are counted here.
var home = netip.AddrFrom4([4]byte{127, 16 | byte(os.Getpid()>>16&15), byte(os.Getpid() >> 8), byte(os.Getpid())})

// listen returns a listener at a port of home.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(home, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// serveEcho serves lines back on a listener of n, until the test ends.
func serveEcho(t testing.TB, n *node, o ListenOptions) (addr string) {
	t.Helper()
	return serveEchoOn(t, n, listen(t), o)
}

func serveEchoOn(t testing.TB, n *node, inner net.Listener, o ListenOptions) (addr string) {
	t.Helper()
	if o.Name == "" {
		o.Name = "echo"
	}
	ln := n.Listen(inner, o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		cancel()
		wg.Wait()
	})
	return ln.Addr().String()
}

// call has a line echoed.
func call(c net.Conn) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "ping\n" {
		err = errors.New("echoed: " + line)
	}
	return err
}

// dialCall connects, has a line echoed, and closes.
func dialCall(ctx context.Context, e *Edge, addr string) error {
	c, err := e.Dial(ctx, addr, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return call(c)
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in a minute it did not come about that %s", what)
		}
	}
}

// fleet is an authority, and credentials of two nodes.
func fleet(t testing.TB) (*trusttest.Authority, *trust.Credentials, *trust.Credentials) {
	a := trusttest.New(t)
	return a, a.Open(t, trust.RoleManager, "m1"), a.Open(t, trust.RoleWorker, "w1")
}
