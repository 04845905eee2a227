package peer

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
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
	// As docs/operation.md advises.
	w.stop()
	for _, part := range []string{logDir, storeDir, headsDir} {
		copyData(t, filepath.Join(m1.o.Data, part), filepath.Join(w.o.Data, part))
	}
	m1.start()
	w.start()
	last = m1.put("l", "v3")
	eventually(t, "all is well with the follower's copy", w.applied(last))
	if got := m1.get(kvPath("k")).body; got != "v" {
		t.Errorf("k is %q", got)
	}
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

// liar is a member whose log is not what the writer wrote, and the heads it sends are
// the writer's.
type liar struct {
	log  *txlog.Log
	book *heads.Book
}

func (l *liar) After(seq uint64) (p2p.SignedHead, bool) {
	h, ok := l.book.After(seq)
	return sent(h), ok
}

func (l *liar) Newest() (p2p.SignedHead, bool) {
	h := l.book.Newest()
	return sent(h), h.Note != nil
}

func (l *liar) Furthest() (p2p.SignedHead, bool) { return l.Newest() }
func (l *liar) Changed() <-chan struct{}         { return l.book.Changed() }

// join makes a liar a manager of a colo, as gossip sees it.
func (l *liar) join(t *testing.T, colo string, via *testNode) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := servePeers(ln, p2p.NewServer(p2p.ServerOptions{
		Log: l.log, Heads: l, Snapshot: func(chunker.InfoHash) (_, _ []byte, _ bool) { return nil, nil, false },
	}), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		stop(ctx)
	})
	g, err := gossip.Start(gossip.Options{
		Addr: "127.0.0.1:0", Join: []string{via.p.Addrs().Gossip},
		Facts: gossip.Facts{
			Name: "liar", Role: gossip.Manager, Colo: colo, State: "serving", Dataset: l.log.Dataset(), PeerAddr: ln.Addr().String(),
			LogFirst: 1, Head: l.log.Head(), Applied: l.log.Head(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
}

// TestLiarInAFleet: the manager next door, which everybody asks first, holds another
// log than the writer in another colo.
func TestLiarInAFleet(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from   int // the first forged entry
		reason heads.Reason
	}{
		"an invented tail": {41, heads.Uncovered},
		"an altered entry": {20, heads.Altered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keys := signingtest.New(t, "m1")
			m1 := newNode(t, "m1", gossip.Manager).sign(keys, 0)
			m1.start()
			for i := range 39 {
				m1.put("k", fmt.Sprint(i))
			}
			// What it signs after a start is its last entry, for sure.
			m1.stop()
			m1.start()
			eventually(t, "the last entry is signed", func() bool { return m1.metric("qs_heads_signed_total") != "0" })
			m1.stop()
			data := filepath.Join(t.TempDir(), "copy")
			copyData(t, data, m1.o.Data)
			book, err := heads.OpenBook(filepath.Join(data, headsDir), heads.BookOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { book.Close() })
			log := forge(t, filepath.Join(data, logDir), c.from, 60)

			m1.o.Colo = "elsewhere"
			m1.start()
			(&liar{log, book}).join(t, "here", m1)
			w := newNode(t, "w", gossip.Worker, m1).sign(keys, 0)
			w.o.Colo = "here"
			w.start()
			eventually(t, "the liar is left", func() bool {
				return w.metric(fmt.Sprintf("qs_replica_stream_ends_total{reason=%q}", c.reason)) != ""
			})
			last := m1.put("k", "last")
			eventually(t, "the writer is followed", w.applied(last))
			if got := w.get(kvPath("k")).body; got != "last" {
				t.Errorf("k is %q", got)
			}
			if got := w.metric("qs_replica_divergences_total"); got != "0" {
				t.Errorf("it diverged %s times", got)
			}
			if got := w.metric("qs_log_forked"); got != "0" {
				t.Error("it takes that for a fork")
			}
		})
	}
}

// forge makes a log that is the one in dir up to an entry, and then goes on by itself.
func forge(t *testing.T, dir string, from, to int) *txlog.Log {
	t.Helper()
	l, err := txlog.Open(dir, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := l.Reader(txlog.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []txlog.Entry
	for len(all) < from-1 {
		entries, err := r.Next(t.Context(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entries...)
	}
	all = all[:from-1]
	for len(all) < to {
		e, err := txlog.Seal(all[len(all)-1].Pos(), 1, time.Now(), []txlog.Op{{Kind: txlog.Put, Key: []byte("k"), Value: []byte("forged")}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	forged, err := txlog.Open(filepath.Join(t.TempDir(), "forged"), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { forged.Close() })
	if _, err := forged.AppendEntries(all); err != nil {
		t.Fatal(err)
	}
	return forged
}
