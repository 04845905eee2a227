package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// patience is how long a fleet on one machine may take for anything.
const patience = 30 * time.Second

// testNode is a node of a fleet in this process. It may be stopped and started
// again.
type testNode struct {
	t      *testing.T
	o      Options
	p      *Peer
	ca     *trusttest.Authority // of its fleet; nil: no TLS
	keys   *signingtest.Keys    // of its fleet's managers; nil: nothing is signed
	scheme string
	client *http.Client
}

// secure gives n a certificate of ca and what belongs to that, and its client a
// certificate of somebody who may do everything that clients do.
func (n *testNode) secure(ca *trusttest.Authority) *testNode {
	n.t.Helper()
	if n.keys == nil {
		n.keys = signingtest.New(n.t)
	}
	if n.o.Role == gossip.Manager {
		n.keys.Trust(n.t, n.o.Name)
	}
	n.sign(n.keys, 0)
	n.ca, n.scheme = ca, "https"
	n.o.TLS, n.o.Colo = ca.Node(n.t, trust.Role(n.o.Role), n.o.Name), ""
	n.client = clientOf(n.t, ca, trust.RoleManager, "test-client")
	return n
}

// clientOf returns an HTTP client that shows a certificate.
func clientOf(t *testing.T, ca *trusttest.Authority, role trust.Role, name string) *http.Client {
	t.Helper()
	creds := ca.Open(t, role, name)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: creds.ClientConfig(trust.Want("", trust.NodeRoles()...))}}
}

// newNode prepares a node with a data directory of its own on free ports.
func newNode(t *testing.T, name string, role gossip.Role, join ...*testNode) *testNode {
	t.Helper()
	const free = "127.0.0.1:0"
	n := &testNode{t: t, scheme: "http", client: &http.Client{Transport: &http.Transport{}}, o: Options{
		Data: t.TempDir(), Name: name, Role: role, Colo: "test", Version: "test",
		GossipAddr: free, SwarmAddr: free, PeerAddr: free, HTTPAddr: free, RESPAddr: free,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", name),
	}}
	for _, j := range join {
		n.o.Join = append(n.o.Join, j.p.Addrs().Gossip)
	}
	if len(join) > 0 && join[0].ca != nil {
		n.keys = join[0].keys
		n.secure(join[0].ca)
	}
	t.Cleanup(n.stop)
	return n
}

// startNode starts a new node.
func startNode(t *testing.T, name string, role gossip.Role, join ...*testNode) *testNode {
	t.Helper()
	n := newNode(t, name, role, join...)
	n.start()
	return n
}

func (n *testNode) start() {
	n.t.Helper()
	p, err := Start(context.Background(), n.o)
	if err != nil {
		n.t.Fatalf("start %s: %v", n.o.Name, err)
	}
	n.p = p
}

func (n *testNode) stop() {
	n.t.Helper()
	n.client.CloseIdleConnections()
	if n.p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.p.Close(ctx); err != nil {
		n.t.Errorf("close %s: %v", n.o.Name, err)
	}
	n.p = nil
}

// testAccess lets everybody do everything, as without TLS.
func testAccess(reg prometheus.Registerer) *access {
	return newAccess(false, ClientLimits{}.withDefaults(), func(string, trust.Reason, string, error) {}, reg)
}

// testLease is of a caller who has all the memory that one may have to himself.
func testLease() *lease {
	return &lease{quota: newQuota("memory", DefaultClientMemory, DefaultClientMemory/4*3), holder: "somebody"}
}

// answer is an HTTP answer, read whole.
type answer struct {
	code   int
	header http.Header
	body   string
	err    error // of reading the body
}

func (a answer) json(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("answer %d %q: %v", a.code, a.body, err)
	}
}

func (n *testNode) do(method, path string, body io.Reader) answer {
	n.t.Helper()
	req, err := http.NewRequest(method, n.scheme+"://"+n.p.Addrs().HTTP+path, body)
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		n.t.Fatalf("%s %s at %s: %v", method, path, n.o.Name, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text), err}
}

func (n *testNode) get(path string) answer {
	n.t.Helper()
	return n.do(http.MethodGet, path, nil)
}

// put writes a pair and returns the entry's seq.
func (n *testNode) put(key, value string) uint64 {
	n.t.Helper()
	a := n.do(http.MethodPut, kvPath(key), strings.NewReader(value))
	var w written
	a.json(n.t, &w)
	if a.code != http.StatusOK {
		n.t.Fatalf("put %q at %s: %d %s", key, n.o.Name, a.code, a.body)
	}
	return w.Seq
}

// putMany writes pairs prefix-00000 … in transactions.
func (n *testNode) putMany(prefix string, count int) {
	n.t.Helper()
	for begin := 0; begin < count; begin += 500 {
		var body bytes.Buffer
		body.WriteString(`{"ops":[`)
		for i := begin; i < min(begin+500, count); i++ {
			if i > begin {
				body.WriteByte(',')
			}
			fmt.Fprintf(&body, `{"op":"put","key":"%s-%05d","value":"%s"}`, prefix, i, strings.Repeat(fmt.Sprint(i%10), 200))
		}
		body.WriteString(`]}`)
		if a := n.do(http.MethodPost, "/v1/txn", &body); a.code != http.StatusOK {
			n.t.Fatalf("write at %s: %d %s", n.o.Name, a.code, a.body)
		}
	}
}

// mint publishes a snapshot.
func (n *testNode) mint() SnapshotInfo {
	n.t.Helper()
	a := n.do(http.MethodPost, "/v1/snapshots", nil)
	if a.code != http.StatusOK {
		n.t.Fatalf("mint at %s: %d %s", n.o.Name, a.code, a.body)
	}
	var s SnapshotInfo
	a.json(n.t, &s)
	return s
}

// offers lists the infohashes that a node offers, newest first.
func (n *testNode) offers() (hashes []string) {
	n.t.Helper()
	var list struct{ Snapshots []SnapshotInfo }
	n.get("/v1/snapshots").json(n.t, &list)
	for _, s := range list.Snapshots {
		hashes = append(hashes, s.InfoHash)
	}
	return hashes
}

// export returns all that a node holds, and the position.
func (n *testNode) export() (text, pos string) {
	n.t.Helper()
	a := n.get("/v1/scan")
	if a.code != http.StatusOK || a.err != nil {
		n.t.Fatalf("scan at %s: %d %v %.200s", n.o.Name, a.code, a.err, a.body)
	}
	return a.body, a.header.Get(posHeader)
}

// self returns what a node says of itself.
func (n *testNode) self() MemberStatus {
	n.t.Helper()
	return n.member(n.o.Name)
}

// member returns what a node says of another one.
func (n *testNode) member(name string) MemberStatus {
	n.t.Helper()
	var s FleetStatus
	n.get("/v1/status").json(n.t, &s)
	for _, m := range s.Members {
		if m.Name == name {
			return m
		}
	}
	return MemberStatus{}
}

// eventually waits for a condition that the fleet is bound to reach.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("still not after %v: %s", patience, what)
		}
	}
}

// caughtUp waits until a node serves what the writer has at seq or later.
func (n *testNode) caughtUp(seq uint64) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%s serves entry %d", n.o.Name, seq), func() bool {
		s := n.self()
		return s.AppliedSeq >= seq && n.get("/readyz").code == http.StatusOK
	})
}

// wantSame compares what nodes hold with what the first one does.
func wantSame(t *testing.T, first *testNode, others ...*testNode) {
	t.Helper()
	text, pos := first.export()
	if text == "" {
		t.Fatal("nothing to compare")
	}
	for _, n := range others {
		got, gotPos := n.export()
		if got != text || gotPos != pos {
			t.Errorf("%s holds %d bytes at %s; %s holds %d bytes at %s", n.o.Name, len(got), gotPos, first.o.Name, len(text), pos)
		}
	}
}

func kvPath(key string) string { return kvPrefix + url.PathEscape(key) }

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has mode %#o, want %#o", path, got, want)
	}
}
