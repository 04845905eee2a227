package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
	"github.com/qs-peer/qs-peer/txlog"
)

// maxExtraMemory is what an abuse may cost a node.
const maxExtraMemory = 64 << 20

// abuse is somebody who wants to harm a node.
type abuse struct {
	t      *testing.T
	node   *child
	config *tls.Config // with a certificate that may read and write
	conns  []net.Conn
	mu     sync.Mutex
}

func (a *abuse) keep(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = append(a.conns, c)
}

func (a *abuse) end() {
	for _, c := range a.conns {
		c.Close()
	}
}

// greedy dials like somebody who takes next to nothing: what the kernel takes for him the
// node has to make first, and need not hold.
var greedy = net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	failed := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
	return errors.Join(failed, err)
}}

// crowd opens n connections, with the certificate unless plain, and sends text over each
// as far as the node takes it within a moment. Those that the node refuses are gone.
func (a *abuse) crowd(addr string, n int, plain bool, text func(i int) string) {
	var g errgroup.Group
	g.SetLimit(64)
	for i := range n {
		g.Go(func() error {
			conn, err := greedy.Dial("tcp", addr)
			if err != nil {
				return nil
			}
			if !plain {
				conn = tls.Client(conn, a.config)
			}
			a.keep(conn)
			// Not more than fits the sockets' buffers is sent to who does not read.
			_ = conn.SetDeadline(time.Now().Add(patience))
			if s := text(i); s != "" {
				_ = conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
				_, _ = io.WriteString(conn, s)
			}
			return nil
		})
	}
	_ = g.Wait()
}

// same has every connection send the same.
func same(text string) func(int) string { return func(int) string { return text } }

// abuses are what the listeners for clients must bear.
var abuses = []struct {
	name    string
	counted trust.Reason // "": only after a time that nobody wants to wait for here
	do      func(*abuse)
}{
	{"10,000 connections of strangers", edge.TooManyHandshakes, func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, 5000, true, same(""))
		a.crowd(a.node.addrs.RESP, 5000, true, same(""))
	}},
	{"random bytes", malformed, func(a *abuse) {
		noise := func(int) string { return randomBytes(32 << 10) }
		a.crowd(a.node.addrs.HTTP, 200, true, noise)
		a.crowd(a.node.addrs.RESP, 200, true, noise)
		a.crowd(a.node.addrs.HTTP, 100, false, noise)
		a.crowd(a.node.addrs.RESP, 100, false, noise)
	}},
	{"idle connections of one identity", edge.TooManyOfIdentity, func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, crowdSize, false, same("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))
		a.crowd(a.node.addrs.RESP, crowdSize, false, same("PING\r\n"))
	}},
	{"headers that do not end", malformed, func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, crowdSize, false, same("GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", maxHeader-100)))
	}},
	{"bodies that do not end", busy, func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, crowdSize, false, same(fmt.Sprintf("PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", txlog.MaxValue, strings.Repeat("x", 1<<20))))
	}},
	{"transactions of much text", "", func(a *abuse) {
		value := base64.StdEncoding.EncodeToString(make([]byte, txlog.MaxValue))
		text := `{"ops":[{"op":"put","key":"YQ==","value":"` + value + `"},{"op":"put"`
		a.crowd(a.node.addrs.HTTP, 24, false, same(fmt.Sprintf("POST /v1/txn?base64=true HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(text)+9, text)))
	}},
	{"arguments that do not end", "", func(a *abuse) {
		a.crowd(a.node.addrs.RESP, crowdSize, false, same(fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s", txlog.MaxValue, strings.Repeat("x", 1<<20))))
	}},
	{"transactions that do not end", "", func(a *abuse) {
		set := fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s\r\n", 64<<10, strings.Repeat("x", 64<<10))
		a.crowd(a.node.addrs.RESP, crowdSize, false, same("MULTI\r\n"+strings.Repeat(set, 16)))
	}},
	{"many small arguments", "", func(a *abuse) {
		a.crowd(a.node.addrs.RESP, crowdSize, false, same("*1000000\r\n$3\r\nDEL\r\n"+strings.Repeat("$1\r\na\r\n", 100_000)))
	}},
	{"values that are not taken", "", func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, crowdSize/2, false, same("GET /v1/kv/big HTTP/1.1\r\nHost: x\r\n\r\n"))
		a.crowd(a.node.addrs.RESP, crowdSize/2, false, same("GET big\r\nGET big\r\n"))
	}},
	{"reports that are not taken", "", func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, crowdSize, false, func(i int) string {
			path := []string{"/metrics", "/v1/status"}[i%2]
			return strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n", 20)
		})
	}},
	{"answers that are not taken", "", func(a *abuse) {
		a.crowd(a.node.addrs.RESP, crowdSize, false, same(strings.Repeat("COMMAND\r\nINFO\r\n", 400)))
	}},
	{"scans that are not taken", "", func(a *abuse) {
		a.crowd(a.node.addrs.HTTP, crowdSize, false, same(strings.Repeat("GET /v1/scan HTTP/1.1\r\nHost: x\r\n\r\n", 20)))
	}},
	{"pages that are not taken", "", func(a *abuse) {
		a.crowd(a.node.addrs.RESP, crowdSize, false, same(strings.Repeat("SCAN 0 COUNT 10000\r\n", 400)))
	}},
}

// crowdSize is how many connections an abuse opens: some more than one identity may have
// by default take too long where the machine is shared.
const crowdSize = 300

func randomBytes(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return string(b)
}

// TestAbuse does everything that strangers and clients can do to take a node's memory,
// and has others use the node meanwhile.
func TestAbuse(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("opens thousands of connections, and measures memory")
	}
	if _, err := os.Stat("/proc/self/status"); err != nil || runtime.GOOS != "linux" {
		t.Skip("measures memory in /proc")
	}
	ca := trusttest.New(t)
	config := func(name string) *tls.Config {
		return ca.Open(t, trust.RoleClientWrite, name).ClientConfig(trust.Want("m1", trust.RoleManager))
	}
	for _, tt := range abuses {
		t.Run(tt.name, func(t *testing.T) {
			node := startChild(t, ca)
			good := newGoodClient(t, node, config("good"))
			good.fill(t)
			a := &abuse{t: t, node: node, config: config("bad")}
			over := sync.OnceFunc(a.end)
			defer over()
			before := node.rest(t)
			refused := good.refused(t, tt.counted)
			stop := node.peak(t)
			working, enough := context.WithTimeout(t.Context(), patience)
			var wg sync.WaitGroup
			wg.Go(func() { good.work(t, working) })
			tt.do(a)
			done := good.done.Load()
			eventually(t, "a good client works", func() bool { return good.done.Load() >= done+20 })
			enough()
			wg.Wait()
			extra := stop() - before
			t.Logf("%d connections, %.1f MiB more than the %.1f before; good requests: %d, the slowest took %v",
				len(a.conns), float64(extra)/(1<<20), float64(before)/(1<<20), good.done.Load(), good.slowest)
			if extra > maxExtraMemory {
				t.Errorf("it cost %d bytes of memory, more than %d", extra, maxExtraMemory)
			}
			// What follows waits for time-outs, which takes neither a processor nor memory: all
			// nodes do that together, once each was measured alone.
			if tt.counted == "" {
				over()
			}
			t.Parallel()
			if tt.counted != "" {
				eventually(t, "it is counted", func() bool { return good.refused(t, tt.counted) > refused })
			}
		})
	}
}

// goodClient reads and writes, over HTTP and RESP.
type goodClient struct {
	base    string
	http    *http.Client
	redis   *redis.Client
	done    atomic.Int64 // requests
	slowest time.Duration
}

func newGoodClient(t *testing.T, node *child, config *tls.Config) *goodClient {
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	g := &goodClient{
		base: "https://" + node.addrs.HTTP, http: &http.Client{Transport: transport},
		redis: redis.NewClient(&redis.Options{Addr: node.addrs.RESP, TLSConfig: config, MaxRetries: -1, ReadTimeout: patience, WriteTimeout: patience}),
	}
	t.Cleanup(func() { g.redis.Close() })
	return g
}

// fill writes what abusers read.
func (g *goodClient) fill(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if err := g.redis.Set(ctx, "big", strings.Repeat("v", txlog.MaxValue), 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := g.redis.Set(ctx, "good", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		var pairs []string
		for j := range 500 {
			pairs = append(pairs, fmt.Sprintf("k-%d-%d", i, j), strings.Repeat("v", 200))
		}
		if err := g.redis.MSet(ctx, pairs).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func (g *goodClient) work(t *testing.T, ctx context.Context) {
	g.slowest = 0
	value := strings.Repeat("g", 3000)
	for ctx.Err() == nil {
		for what, do := range map[string]func() error{
			"SET":    func() error { return g.redis.Set(ctx, "good", value, 0).Err() },
			"GET":    func() error { return g.redis.Get(ctx, "good").Err() },
			"PUT":    func() error { return g.request(ctx, http.MethodPut, "/v1/kv/good", value) },
			"get":    func() error { return g.request(ctx, http.MethodGet, "/v1/kv/good", "") },
			"status": func() error { return g.request(ctx, http.MethodGet, "/v1/status", "") },
		} {
			begin := time.Now()
			err := do()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
				return
			}
			g.slowest = max(g.slowest, time.Since(begin))
			g.done.Add(1)
		}
	}
}

// refused returns how many refusals the node has counted for a reason.
func (g *goodClient) refused(t *testing.T, why trust.Reason) (sum float64) {
	t.Helper()
	resp, err := g.http.Get(g.base + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for in := bufio.NewScanner(resp.Body); in.Scan(); {
		if series, value, _ := strings.Cut(in.Text(), " "); strings.HasPrefix(series, "qs_edge_refused_total{") && strings.Contains(series, fmt.Sprintf("reason=%q", why)) {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

func (g *goodClient) request(ctx context.Context, method, path, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, g.base+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := g.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}
