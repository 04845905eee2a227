package peer

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// rotated is a set of TLS files that a test replaces.
type rotated struct {
	id    trust.Identity
	files trust.Files
}

// replace puts a certificate of ca in place of the one there, and leaves the
// authorities as they are.
func (r rotated) replace(t *testing.T, ca *trusttest.Authority) {
	t.Helper()
	fresh := ca.Issue(t, t.TempDir(), r.id, time.Now().Add(time.Hour))
	for from, to := range map[string]string{fresh.Cert: r.files.Cert, fresh.Key: r.files.Key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
}

// authorise makes the authorities those that others' files name.
func (r rotated) authorise(t *testing.T, cas ...*trusttest.Authority) {
	t.Helper()
	var bundle []byte
	for _, ca := range cas {
		text, err := os.ReadFile(ca.Node(t, trust.RoleWorker, "any").CA)
		if err != nil {
			t.Fatal(err)
		}
		bundle = append(bundle, text...)
	}
	part := filepath.Join(filepath.Dir(r.files.CA), "part")
	if err := os.WriteFile(part, bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(part, r.files.CA); err != nil {
		t.Fatal(err)
	}
}

var reloadsLine = regexp.MustCompile(`(?m)^qs_tls_reloads_total\{result="done"\} (\d+)$`)

// reloads returns how often a node took up new files.
func (n *testNode) reloads() int {
	n.t.Helper()
	m := reloadsLine.FindStringSubmatch(n.get("/metrics").body)
	if m == nil {
		n.t.Fatal("no metric of reloads")
	}
	count, err := strconv.Atoi(m[1])
	if err != nil {
		n.t.Fatal(err)
	}
	return count
}

// TestRotation replaces every certificate, and then the authority, of a fleet at work:
// no request fails, and no stream breaks.
func TestRotation(t *testing.T) {
	t.Parallel()
	before, after := trusttest.New(t), trusttest.New(t)
	m := newNode(t, "m1", gossip.Manager).secure(before)
	m.start()
	m.putMany("a", 500)
	m.mint()
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(m.put("b", "1"))
	nodes := []*testNode{m, w}

	client := rotated{trusttest.Identity(trust.RoleManager, "rotating"), before.Node(t, trust.RoleManager, "rotating")}
	creds, err := trust.Open(trust.Options{Files: client.files})
	if err != nil {
		t.Fatal(err)
	}
	all := []rotated{client}
	for _, n := range nodes {
		all = append(all, rotated{trusttest.Identity(trust.Role(n.o.Role), n.o.Name), n.o.TLS})
	}

	// The load: over connections that stay, and over a new one for each request.
	var asked atomic.Int64
	over := make(chan struct{})
	var running sync.WaitGroup
	load := func(keep bool, method, url string) {
		transport := &http.Transport{TLSClientConfig: creds.ClientConfig(nil), DisableKeepAlives: !keep}
		defer transport.CloseIdleConnections()
		c := &http.Client{Transport: transport, Timeout: patience}
		for {
			select {
			case <-over:
				return
			default:
			}
			var body io.Reader
			if method == http.MethodPut {
				body = strings.NewReader("x")
			}
			req, err := http.NewRequest(method, url, body)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Errorf("%s over a connection that stays: %v: %v", method, keep, err)
				return
			}
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%s over a connection that stays: %v: %s, %v", method, keep, resp.Status, err)
				return
			}
			asked.Add(1)
		}
	}
	for _, keep := range []bool{true, false} {
		running.Go(func() { load(keep, http.MethodGet, "https://"+w.p.Addrs().HTTP+kvPath("b")) })
		running.Go(func() { load(keep, http.MethodPut, "https://"+m.p.Addrs().HTTP+kvPath(fmt.Sprintf("load-%v", keep))) })
	}
	broken := func() string { return metricLine(t, w, "qs_p2p_stream_broken_total") }
	atFirst := broken()

	for i, step := range []struct {
		what string
		do   func(r rotated)
	}{
		{"new certificates", func(r rotated) { r.replace(t, before) }},
		{"two authorities", func(r rotated) { r.authorise(t, before, after) }},
		{"certificates of the new one", func(r rotated) { r.replace(t, after) }},
		{"the new one only", func(r rotated) { r.authorise(t, after) }},
	} {
		for _, r := range all {
			step.do(r)
		}
		if err := creds.Reload(); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			n.client.CloseIdleConnections()
			n.client = &http.Client{Transport: &http.Transport{TLSClientConfig: creds.ClientConfig(nil)}}
			eventually(t, n.o.Name+" took up "+step.what, func() bool { return n.reloads() >= i+1 })
		}
		w.caughtUp(m.put(step.what, "1"))
		if t.Failed() {
			break
		}
	}
	close(over)
	running.Wait()
	if n := asked.Load(); n < 100 {
		t.Errorf("only %d requests were made", n)
	} else {
		t.Logf("%d requests during four replacements of all files", n)
	}
	if now := broken(); now != atFirst {
		t.Errorf("log streams broke: %q, before %q", now, atFirst)
	}
	// Whoever comes with the old authority's certificate is nobody now.
	old := clientOf(t, before, trust.RoleManager, "late")
	if resp, err := old.Get("https://" + m.p.Addrs().HTTP + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("a certificate of the old authority is good")
	}
}

// metricLine returns a metric's line of a node's page.
func metricLine(t *testing.T, n *testNode, name string) string {
	t.Helper()
	for line := range strings.Lines(n.get("/metrics").body) {
		if strings.HasPrefix(line, name+" ") {
			return line
		}
	}
	t.Fatalf("%s has no metric %s", n.o.Name, name)
	return ""
}
