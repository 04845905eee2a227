package peer

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
)

// copyData makes the data directory to what the one of another is now.
func copyData(t *testing.T, to, from string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) applied(seq uint64) func() bool {
	return func() bool { return n.self().AppliedSeq == seq }
}

// TestSignedFleet: where heads are signed everything works as where they are not:
// from entry 1, from a snapshot, from an old state, and without the writer.
func TestSignedFleet(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1", "m2")
	m1 := newNode(t, "m1", gossip.Manager).sign(keys, 0)
	m1.start()
	m1.putMany("a", 3000)
	early := newNode(t, "early", gossip.Worker, m1).sign(keys, 0)
	early.start()
	m2 := newNode(t, "m2", gossip.Manager, m1).sign(keys, 0)
	m2.start()
	last := m1.put("k", "v")
	eventually(t, "from entry 1", func() bool { return early.applied(last)() && m2.applied(last)() })
	early.stop()
	m1.mint()
	m1.putMany("b", 3000)
	late := newNode(t, "late", gossip.Worker, m1).sign(keys, 0)
	late.start()
	last = m1.put("k", "v2")
	eventually(t, "from a snapshot", late.applied(last))
	early.start()
	eventually(t, "from an old state", early.applied(last))
	want, _ := m1.export()
	for _, n := range []*testNode{early, late, m2} {
		if got, _ := n.export(); got != want {
			t.Errorf("%s holds something else", n.o.Name)
		}
		self := n.self()
		if self.SignedAt == nil || self.HeadSeq != last || self.State != string(replica.Serving) {
			t.Errorf("%s says of itself %+v", n.o.Name, self)
		}
	}
	before := early.self().SignedAt
	eventually(t, "heads come while nothing is written", func() bool { return early.self().SignedAt.After(*before) })

	m1.stop()
	again := newNode(t, "again", gossip.Worker, m2).sign(keys, 0)
	again.start()
	eventually(t, "without the writer", again.applied(last))
	eventually(t, "serving without the writer", func() bool { return again.self().State == string(replica.Serving) })
}

// TestUnsignedUpstream: a node that must not believe a fleet follows nobody, and
// says why.
func TestUnsignedUpstream(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1")
	m1 := startNode(t, "m1", gossip.Manager)
	m1.putMany("a", 10)
	w := newNode(t, "w", gossip.Worker, m1).sign(keys, 0)
	w.start()
	eventually(t, "the writer is left", func() bool { return w.metric(`qs_replica_stream_ends_total{reason="unsigned"}`) != "" })
	if self := w.self(); self.AppliedSeq != 0 || !strings.Contains(self.Error, "m1") {
		t.Errorf("it says of itself %+v", self)
	}
}

// TestWriterFromABackup: a writer whose data directory was restored from an old
// copy is stopped by the first follower that comes, before it writes anything.
func TestWriterFromABackup(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1")
	m1 := newNode(t, "m1", gossip.Manager).sign(keys, 0)
	m1.start()
	m1.putMany("a", 10)
	m1.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	copyData(t, backup, m1.o.Data)
	m1.start()
	w := newNode(t, "w", gossip.Worker, m1).sign(keys, 0)
	w.start()
	last := m1.put("k", "v")
	eventually(t, "replicated", w.applied(last))
	m1.stop()
	good := filepath.Join(t.TempDir(), "good")
	copyData(t, good, m1.o.Data)

	copyData(t, m1.o.Data, backup)
	m1.o.GossipAddr = w.lastJoined()
	m1.start()
	eventually(t, "the writer notices", func() bool { return m1.self().State == string(replica.Quarantined) })
	a := m1.do(http.MethodPut, kvPath("k"), strings.NewReader("v2"))
	if a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, "lost entries") {
		t.Errorf("a write: %d %s", a.code, a.body)
	}
	if a := m1.get(kvPath("a-00001")); a.code != http.StatusOK {
		t.Errorf("a read: %d %s", a.code, a.body)
	}
	if m1.metric("qs_log_forked") != "1" {
		t.Error("no metric tells of it")
	}
	if self := w.self(); self.AppliedSeq != last || self.State != string(replica.Serving) {
		t.Errorf("the worker: %+v", self)
	}
	m1.stop()
	if _, err := Start(context.Background(), m1.o); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("started again: %v", err)
	}
	copyData(t, m1.o.Data, good)
	m1.start()
	last = m1.put("k", "v3")
	eventually(t, "all is well with the right copy", w.applied(last))
}

// lastJoined returns the gossip address that the node joined.
func (n *testNode) lastJoined() string { return n.o.Join[len(n.o.Join)-1] }

// TestFork: a writer is restored from an old copy and writes on while its follower
// is away. When they meet both find out, stop, and go on serving what they have.
func TestFork(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1")
	m1 := newNode(t, "m1", gossip.Manager).sign(keys, 0)
	m1.start()
	m1.o.GossipAddr = m1.p.Addrs().Gossip
	m1.putMany("a", 10)
	m1.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	copyData(t, backup, m1.o.Data)
	m1.start()
	w := newNode(t, "w", gossip.Worker, m1).sign(keys, 0)
	w.start()
	m1.put("k", "first")
	last := m1.put("l", "first")
	eventually(t, "replicated", w.applied(last))
	w.stop()
	m1.stop()

	copyData(t, m1.o.Data, backup)
	m1.start()
	for range 5 {
		m1.put("k", "second")
	}
	fresh := newNode(t, "fresh", gossip.Worker, m1).sign(keys, 0) // it sees one history only
	fresh.start()
	eventually(t, "the second history is replicated", func() bool { return fresh.get(kvPath("k")).body == "second" })

	for range 2 { // the second time after a restart
		w.start()
		eventually(t, "the worker is out of service", func() bool { return w.self().State == string(replica.Quarantined) })
		self := w.self()
		if self.AppliedSeq != last || !strings.Contains(self.Error, "forked") {
			t.Errorf("the worker says of itself %+v", self)
		}
		eventually(t, "the worker serves what it had", func() bool { return w.get("/readyz").code == http.StatusOK })
		if got := w.get(kvPath("k")).body; got != "first" {
			t.Errorf("the worker's k is %q", got)
		}
		if w.metric("qs_log_forked") != "1" {
			t.Error("no metric tells of the fork")
		}
		w.stop()
	}
	eventually(t, "the writer stands still", func() bool { return m1.self().State == string(replica.Quarantined) })
	if a := m1.do(http.MethodPut, kvPath("k"), strings.NewReader("third")); a.code != http.StatusServiceUnavailable {
		t.Errorf("the writer takes writes: %d %s", a.code, a.body)
	}
	trusted := keys.Open(t)
	for _, n := range []*testNode{w, m1} {
		files, err := filepath.Glob(filepath.Join(n.o.Data, evidenceDir, "fork-*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: evidence %q, %v", n.o.Name, files, err)
		}
		e, err := heads.ReadEvidence(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Check(trusted); err != nil {
			t.Errorf("%s: %v", n.o.Name, err)
		}
	}

	// The operator decides for the second history.
	if err := os.RemoveAll(w.o.Data); err != nil {
		t.Fatal(err)
	}
	m1.stop()
	if err := os.RemoveAll(filepath.Join(m1.o.Data, evidenceDir)); err != nil {
		t.Fatal(err)
	}
	m1.start()
	w.start()
	last = m1.put("k", "fourth")
	eventually(t, "all follow one history", func() bool { return w.applied(last)() && fresh.applied(last)() })
}
