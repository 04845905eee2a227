package e2e

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/trust"
)

const (
	// extraMemory is what any abuse may cost a node at its peak, in bytes: more than it
	// had before the first of them.
	extraMemory = 64 << 20
	// attackTime is how long each attack lasts at least, and minAsked how many requests
	// of others it lasts at least.
	attackTime = 4 * time.Second
	minAsked   = 2
	// comeBack is how often attackers who were cut off connect anew, all together, in a second,
	// and shakeAgain those whom that costs a handshake: they compute on the same cores, and that
	// is not to be what harms. Bars for floods of handshakes are in package edge.
	comeBack, shakeAgain = 2000, 200
	// unharmed is the longest that such a request may take, and none may fail, on a machine
	// where one takes no longer than usual while nobody attacks. On a machine that is slower, just
	// before or just after an attack, it may take as many times longer, and be tried again; but
	// never longer than clients commonly wait.
	unharmed = 5 * time.Second
	usual    = 20 * time.Millisecond
	atMost   = 30 * time.Second
)

// attack is something that somebody does to a listener for as long as ctx lives.
type attack struct {
	what string
	// listeners it is tried on; nil: all of them.
	listeners []string
	// conns is how many do it at a time, on each listener.
	conns int
	// shakes says that each of them does a whole handshake first.
	shakes bool
	// do is one of them, with a connection of its own; creds is a client's good certificate.
	do func(ctx context.Context, c net.Conn, creds *trust.Credentials)
}

var attacks = []attack{
	{"10,000 connections that say nothing", nil, 2000, false, func(ctx context.Context, c net.Conn, _ *trust.Credentials) {
		_, _ = c.Read(make([]byte, 1)) // until it is cut off
	}},
	{"a handshake a byte at a time", nil, 200, false, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		_ = tls.Client(&trickle{Conn: c, ctx: ctx}, creds.ClientConfig(nil)).HandshakeContext(ctx)
	}},
	{"random bytes", nil, 50, false, func(ctx context.Context, c net.Conn, _ *trust.Credentials) {
		_, _ = io.CopyN(c, rand.Reader, 1<<20)
	}},
	{"a record of 16 KiB that never ends", nil, 200, false, func(ctx context.Context, c net.Conn, _ *trust.Credentials) {
		_, _ = c.Write([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc})
		_, _ = c.Write(make([]byte, 16000))
		_, _ = c.Read(make([]byte, 1))
	}},
	{"handshakes without a certificate, one after the other", nil, 20, true, func(ctx context.Context, c net.Conn, _ *trust.Credentials) {
		t := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		_, _ = t.Read(make([]byte, 1))
	}},
	{"a client who sends a request's head a byte at a time", []string{"http"}, 400, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			_, _ = io.WriteString(&trickle{Conn: t, ctx: ctx}, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<10))
		}
	}},
	{"a client who sends a huge head", []string{"http"}, 50, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			_, _ = io.WriteString(t, "GET / HTTP/1.1\r\nHost: x\r\n")
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := fmt.Fprintf(t, "X-%d: %s\r\n", i, strings.Repeat("x", 8<<10)); err != nil {
					return
				}
			}
		}
	}},
	{"a client who asks for everything and takes nothing", []string{"http"}, 200, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			_, _ = io.WriteString(t, "GET /v1/scan HTTP/1.1\r\nHost: x\r\n\r\n")
			<-ctx.Done()
		}
	}},
	{"a client whose body never comes", []string{"http"}, 400, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			_, _ = io.WriteString(t, "PUT /v1/kv/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
			<-ctx.Done()
		}
	}},
	{"a client who says that a million long arguments come", []string{"resp"}, 200, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			_, _ = io.WriteString(t, "*1000000\r\n$3\r\nSET\r\n")
			for ctx.Err() == nil {
				if _, err := io.WriteString(t, "$400000\r\n"+strings.Repeat("x", 400000)+"\r\n"); err != nil {
					return
				}
			}
		}
	}},
	{"a client who queues and queues", []string{"resp"}, 100, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			go io.Copy(io.Discard, t)
			_, _ = io.WriteString(t, "MULTI\r\n")
			for ctx.Err() == nil {
				if _, err := io.WriteString(t, strings.Repeat("SET k "+strings.Repeat("x", 1000)+"\r\n", 64)); err != nil {
					return
				}
			}
		}
	}},
	{"a client who asks and asks and takes no answer", []string{"resp"}, 200, true, func(ctx context.Context, c net.Conn, creds *trust.Credentials) {
		if t := tls.Client(c, creds.ClientConfig(nil)); t.HandshakeContext(ctx) == nil {
			for ctx.Err() == nil {
				if _, err := io.WriteString(t, strings.Repeat("GET key-000001\r\n", 256)); err != nil {
					return
				}
			}
		}
	}},
}

// trickle writes a byte at a time.
type trickle struct {
	net.Conn
	ctx context.Context
}

func (c *trickle) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
		select {
		case <-c.ctx.Done():
			return i + 1, c.ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return len(p), nil
}

// TestAbuse does to a node of a running fleet what strangers and bad clients do: its
// memory stays bounded, and others do not notice.
func TestAbuse(t *testing.T) {
	if os.Getenv("QS_E2E") == "" {
		t.Skip("needs the built binary: run make e2e")
	}
	t.Parallel()
	f := newStory(t, os.Getenv("QS_PEER"), true)
	m, w := f.start("manager", "m1"), f.start("worker", "w1")
	creds, err := trust.Open(trust.Options{Files: f.Client().Files})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Open(filepath.Join(f.dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	bad, err := authority.Issue(ca.Request{Role: trust.RoleClientWrite, Colo: "default", Name: "bad", Out: t.TempDir(), NewKey: true})
	if err != nil {
		t.Fatal(err)
	}
	badCreds, err := trust.Open(trust.Options{Files: bad.Files})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: creds.ClientConfig(nil), DisableKeepAlives: true}
	good := &http.Client{Transport: transport, Timeout: 2 * atMost}
	var ops strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&ops, `{"op":"put","key":"key-%06d","value":"%s"},`, i, strings.Repeat("v", 200))
	}
	body := `{"ops":[` + strings.TrimSuffix(ops.String(), ",") + `]}`
	if err := request(good, http.MethodPost, "https://"+m.Addrs.HTTP+"/v1/txn", body); err != nil {
		t.Fatal(err)
	}
	f.converged(time.Minute, m, "m1", "w1")

	listeners := map[string]string{
		"gossip": m.Addrs.Gossip, "swarm": m.Addrs.Swarm, "peer": m.Addrs.Peer, "http": m.Addrs.HTTP, "resp": m.Addrs.RESP,
	}
	// A new connection for each: to the node that is under attack, and to one that depends on it.
	ask := func() error {
		return errors.Join(
			request(good, http.MethodPut, "https://"+m.Addrs.HTTP+"/v1/kv/good", "x"),
			request(good, http.MethodGet, "https://"+w.Addrs.HTTP+"/v1/kv/key-000001", ""))
	}
	// pace returns how long that takes now: the median of a few.
	pace := func(t *testing.T) time.Duration {
		took := make([]time.Duration, 9)
		for i := range took {
			began := time.Now()
			if err := ask(); err != nil {
				t.Error(err)
			}
			took[i] = time.Since(began)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	before := anonymous(t, m)
	for _, a := range attacks {
		t.Run(a.what, func(t *testing.T) {
			alone := pace(t)
			now := anonymous(t, m)
			ctx, cancel := context.WithTimeout(t.Context(), minAsked*2*atMost)
			defer cancel()
			// As if from another machine: a host that has most of what there is gives way first.
			from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
			var attackers, others sync.WaitGroup
			var targets []string
			for name, addr := range listeners {
				if a.listeners == nil || a.listeners[0] == name {
					targets = append(targets, addr)
				}
			}
			tried := len(targets) * a.conns
			rate := time.Duration(comeBack)
			if a.shakes {
				rate = shakeAgain
			}
			pause := max(50*time.Millisecond, time.Duration(tried)*time.Second/rate)
			for _, addr := range targets {
				for range a.conns {
					attackers.Go(func() {
						for ctx.Err() == nil {
							c, err := from.DialContext(ctx, "tcp", addr)
							if err != nil {
								return
							}
							stop := context.AfterFunc(ctx, func() { c.Close() })
							a.do(ctx, c, badCreds)
							stop()
							c.Close()
							select {
							case <-time.After(pause):
							case <-ctx.Done():
							}
						}
					})
				}
			}
			var slowest time.Duration
			asked, again := 0, 0
			others.Go(func() {
				defer cancel()
				attacked := time.Now()
				for asked < minAsked || time.Since(attacked) < attackTime {
					began := time.Now()
					err := ask()
					for ; err != nil && time.Since(began) < atMost; err = ask() {
						again++
					}
					if err != nil {
						t.Errorf("somebody else's request: %v", err)
						return
					}
					asked++
					slowest = max(slowest, time.Since(began))
				}
			})
			peak := now
			for ctx.Err() == nil {
				peak = max(peak, anonymous(t, m))
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
			others.Wait()
			attackers.Wait()
			t.Logf("%d at a time: memory %d MiB, at its peak %d MiB more than at first; %d requests of others, %d of them tried again, the slowest %v",
				tried, now>>20, (peak-before)>>20, asked, again, slowest.Round(time.Millisecond))
			if peak-before > extraMemory {
				t.Errorf("the node took %d MiB more; at most %d MiB are allowed", (peak-before)>>20, int64(extraMemory)>>20)
			}
			alone = max(alone, pace(t))
			limit := min(atMost, time.Duration(float64(unharmed)*max(1, float64(alone)/float64(usual))))
			t.Logf("without the attack a request takes %v, so %v are allowed", alone.Round(time.Millisecond), limit.Round(time.Millisecond))
			if slowest > limit {
				t.Errorf("of %d requests of others, the slowest took %v", asked, slowest)
			}
			if again > 0 && limit == unharmed {
				t.Errorf("%d requests of others failed", again)
			}
		})
	}

	transport.CloseIdleConnections()
	f.converged(time.Minute, m, "m1", "w1")
	page, err := get(good, "https://"+m.Addrs.HTTP+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for name := range listeners {
		for _, reason := range []trust.Reason{trust.NoCertificate, trust.NotTLS} {
			line := regexp.MustCompile(`(?m)^qs_edge_refused_total\{listener="` + name + `",reason="` + string(reason) + `"\} [1-9]`)
			if !line.MatchString(page) {
				t.Errorf("refusals at %s for %s are not counted", name, reason)
			}
		}
	}
	log, err := os.ReadFile(m.Log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "\n"); n > 500 {
		t.Errorf("the node logged %d lines", n)
	} else {
		t.Logf("the node logged %d lines", n)
	}
}

// request makes one and reads the answer.
func request(c *http.Client, method, url, body string) error {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.200s", method, url, resp.Status, text)
	}
	return err
}

func get(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// anonymous returns the memory of a node's process that no file backs, in bytes: the
// pages of its store, which the kernel takes back at will, do not count.
func anonymous(t *testing.T, n *fleet.Node) int64 {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if kib, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			v, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(kib, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v << 10
		}
	}
	t.Fatal("no RssAnon of the node")
	return 0
}
