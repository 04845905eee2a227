package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestFollowFromTheFirstEntry(t *testing.T) {
	t.Parallel()
	m := startNode(t, "m1", gossip.Manager)
	m.putMany("a", 1000)
	w := startNode(t, "w1", gossip.Worker, m)
	last := m.put("last", "1")
	w.caughtUp(last)
	wantSame(t, m, w)
}

// TestFleet is the main road: workers that own nothing fetch a snapshot, catch
// up and serve; they are stopped, and go on where they were; the writer is.
func TestFleet(t *testing.T) {
	t.Run("plain", func(t *testing.T) { testFleet(t, nil) })
	t.Run("TLS", func(t *testing.T) { testFleet(t, trusttest.New(t)) })
}

func testFleet(t *testing.T, ca *trusttest.Authority) {
	t.Parallel()
	m := newNode(t, "m1", gossip.Manager)
	if ca != nil {
		m.secure(ca)
	}
	m.start()
	m.putMany("before", 3000)
	s := m.mint()
	if again := m.mint(); again != s {
		t.Errorf("the same position gave %+v and %+v", s, again)
	}
	m.putMany("after", 500)
	last := m.put("last", "1")

	var workers []*testNode
	for i := range 3 {
		workers = append(workers, startNode(t, fmt.Sprintf("w%d", i+1), gossip.Worker, m))
	}
	for _, w := range workers {
		w.caughtUp(last)
		eventually(t, w.o.Name+" offers the snapshot", func() bool { return slices.Equal(w.offers(), []string{s.InfoHash}) })
		if self := w.self(); self.BytesFromManagers+self.BytesFromWorkers < s.Size {
			t.Errorf("%s says that it received %d + %d bytes of %d", w.o.Name, self.BytesFromManagers, self.BytesFromWorkers, s.Size)
		}
		wantProgress(t, w, s)
		for _, file := range []string{"torrent", "manifest"} {
			path := "/v1/snapshots/" + s.InfoHash + "/" + file
			if a, b := m.get(path), w.get(path); a.code != 200 || a.body != b.body {
				t.Errorf("%s: %d %q and %d %q", path, a.code, a.body, b.code, b.body)
			}
		}
	}
	wantSame(t, m, workers...)
	eventually(t, "the manager sees all serving", func() bool {
		for _, w := range workers {
			if got := m.member(w.o.Name); got.State != "serving" || got.LagEntries != 0 || got.SnapshotInfohash != s.InfoHash || got.Progress != 1 {
				return false
			}
		}
		return true
	})

	// A worker restarts: it has a copy, so it fetches nothing.
	w := workers[0]
	w.stop()
	eventually(t, "the manager hears that it left", func() bool { return m.member(w.o.Name).State == "left" })
	last = m.put("while away", "1")
	w.start()
	w.caughtUp(last)
	if self := w.self(); self.BytesFromManagers+self.BytesFromWorkers != 0 {
		t.Errorf("after a restart it fetched %d + %d bytes", self.BytesFromManagers, self.BytesFromWorkers)
	}
	if a := w.get("/v1/progress"); a.code != http.StatusNotFound || !strings.Contains(a.body, "no snapshot since it started") {
		t.Errorf("progress of a node that fetched nothing: %d %s", a.code, a.body)
	}
	eventually(t, "it offers the snapshot again", func() bool { return slices.Equal(w.offers(), []string{s.InfoHash}) })

	// The writer restarts, at other addresses, and joins them this time.
	m.stop()
	for _, w := range workers {
		if a := w.get(kvPath("last")); a.body != "1" {
			t.Errorf("without the writer %s answers %d %q", w.o.Name, a.code, a.body)
		}
	}
	m.o.Join = []string{workers[1].p.Addrs().Gossip}
	m.start()
	last = m.put("again", "1")
	for _, w := range workers {
		w.caughtUp(last)
	}
	wantSame(t, m, workers...)
}

// TestTwoManagers has one that writes and one that follows: they offer the same
// snapshots, and the fleet outlives either.
func TestTwoManagers(t *testing.T) {
	t.Parallel()
	m1 := startNode(t, "m1", gossip.Manager)
	m1.putMany("a", 2000)
	m2 := startNode(t, "m2", gossip.Manager, m1)
	m2.caughtUp(m1.put("last", "1"))
	if a := m2.do(http.MethodPut, "/v1/kv/a", strings.NewReader("1")); a.code != http.StatusMisdirectedRequest {
		t.Errorf("the follower took a write: %d %s", a.code, a.body)
	}

	// Both mint at one position.
	s1, s2 := m1.mint(), m2.mint()
	if s1 != s2 {
		t.Errorf("at one position:\n%+v\n%+v", s1, s2)
	}
	// The follower fetches what it did not mint.
	m2.caughtUp(m1.put("later", "1"))
	s3 := m1.mint()
	for _, m := range []*testNode{m1, m2} {
		eventually(t, m.o.Name+" offers both", func() bool { return slices.Equal(m.offers(), []string{s3.InfoHash, s1.InfoHash}) })
	}

	w1 := startNode(t, "w1", gossip.Worker, m1, m2)
	w1.caughtUp(m1.put("more", "1"))

	// Without the follower everything goes on.
	m2.stop()
	last := m1.put("without m2", "1")
	w1.caughtUp(last)
	m2.start()
	m2.caughtUp(last)
	wantSame(t, m1, m2, w1)

	// Without the writer there are reads, and new workers.
	m1.stop()
	w2 := startNode(t, "w2", gossip.Worker, m2)
	w2.caughtUp(last)
	wantSame(t, m2, w1, w2)
	eventually(t, "the worker knows no writer", func() bool {
		a := w2.do(http.MethodPut, "/v1/kv/a", strings.NewReader("1"))
		return a.code == http.StatusMisdirectedRequest && strings.Contains(a.body, "no live node")
	})
	m1.o.Join = []string{m2.p.Addrs().Gossip}
	m1.start()
	last = m1.put("back", "1")
	for _, n := range []*testNode{m2, w1, w2} {
		n.caughtUp(last)
	}
	wantSame(t, m1, m2, w1, w2)
}

// TestWaitingManager starts before there is anything to follow.
func TestWaitingManager(t *testing.T) {
	t.Parallel()
	w := startNode(t, "w1", gossip.Worker)
	m2 := startNode(t, "m2", gossip.Manager, w)
	if a := m2.do(http.MethodPost, "/v1/snapshots", nil); a.code != http.StatusServiceUnavailable {
		t.Errorf("minted nothing: %d %s", a.code, a.body)
	}
	m1 := newNode(t, "m1", gossip.Manager, w)
	m1.o.Init = true
	m1.start()
	last := m1.put("a", "1")
	for _, n := range []*testNode{m2, w} {
		n.caughtUp(last)
	}
	wantSame(t, m1, m2, w)

	// Which is which is remembered.
	m1.stop()
	m2.stop()
	m1.o.Init, m2.o.Join, m2.o.Init = false, nil, false
	m2.start()
	m1.start()
	if a := m2.do(http.MethodPut, "/v1/kv/a", strings.NewReader("2")); a.code != http.StatusMisdirectedRequest {
		t.Errorf("the follower took a write: %d %s", a.code, a.body)
	}
	w.caughtUp(m1.put("a", "2"))
}

// rollLog writes so much that the log begins new segments, and leaves little in
// the store.
func rollLog(n *testNode) {
	n.t.Helper()
	value := strings.Repeat("v", txlog.MaxValue)
	for range 10 {
		n.put("big", value)
	}
	if a := n.do(http.MethodDelete, "/v1/kv/big", nil); a.code != http.StatusOK {
		n.t.Fatal(a)
	}
}

// TestTrimmedLog has a log that no longer reaches back: a new worker takes the
// snapshot; one that fell behind takes it, too, and serves its old copy
// meanwhile. Old snapshots disappear everywhere.
func TestTrimmedLog(t *testing.T) {
	t.Parallel()
	m := newNode(t, "m1", gossip.Manager)
	m.o.KeepSnapshots = 1
	m.start()
	m.putMany("old", 1000)
	s1 := m.mint()
	behind := startNode(t, "behind", gossip.Worker, m)
	behind.caughtUp(m.put("last", "1"))
	stays := startNode(t, "stays", gossip.Worker, m)
	stays.caughtUp(m.put("last", "2"))
	behind.stop()

	rollLog(m)
	last := m.put("last", "3")
	stays.caughtUp(last)
	s2 := m.mint()
	for _, n := range []*testNode{m, stays} {
		if n == stays {
			// It did not fetch the new one, and nobody needs the old one.
			eventually(t, "the worker dropped the old snapshot", func() bool { return len(n.offers()) == 0 })
		} else if got := n.offers(); !slices.Equal(got, []string{s2.InfoHash}) {
			t.Errorf("offers %v", got)
		}
		eventually(t, n.o.Name+"'s log is trimmed", func() bool { return n.self().LogFirst > s1.Seq+1 })
		names, err := filepath.Glob(filepath.Join(n.o.Data, snapshotsDir, fmt.Sprintf("snapshot-%020d-*", s1.Seq)))
		if err != nil || len(names) > 0 {
			t.Errorf("left of the old snapshot: %v %v", names, err)
		}
	}

	fresh := startNode(t, "fresh", gossip.Worker, m)
	fresh.caughtUp(last)

	// The one that fell behind serves from its start on, first old, then new.
	behind.start()
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for seen := ""; ; {
			select {
			case <-stop:
				return
			default:
			}
			a := behind.get("/v1/kv/last")
			if a.code == http.StatusServiceUnavailable && seen == "" {
				continue // it only just started
			}
			if a.code != http.StatusOK || a.body < seen {
				t.Errorf("read %d %q after %q", a.code, a.body, seen)
				return
			}
			seen = a.body
		}
	})
	behind.caughtUp(last)
	close(stop)
	watch.Wait()
	wantSame(t, m, stays, fresh, behind)
	if metrics := behind.get("/metrics").body; !strings.Contains(metrics, "qs_replica_rebuilds_total 1\n") {
		t.Errorf("it did not rebuild: %s", metrics)
	}
}

func TestPublishEvery(t *testing.T) {
	t.Parallel()
	m := newNode(t, "m1", gossip.Manager)
	m.o.SnapshotEvery = 1
	m.start()
	w := startNode(t, "w1", gossip.Worker, m)
	var hashes []string
	for i := range 4 {
		seq := m.put("a", fmt.Sprint(i))
		eventually(t, "a snapshot at the newest entry", func() bool { return m.self().SnapshotSeq == seq })
		hashes = append(hashes, m.offers()[0])
		w.caughtUp(seq)
	}
	want := []string{hashes[3], hashes[2]}
	if got := m.offers(); !slices.Equal(got, want) {
		t.Errorf("offers %v, want %v", got, want)
	}
}

// TestOtherDataset starts a worker of one fleet in another.
func TestOtherDataset(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, "a1", gossip.Manager), startNode(t, "b1", gossip.Manager)
	w := startNode(t, "w1", gossip.Worker, a)
	w.caughtUp(a.put("k", "1"))
	w.stop()
	w.o.Join = []string{b.p.Addrs().Gossip}
	w.start()
	<-w.p.Done()
	wantError(t, w.p.Err(), a.self().Dataset, b.self().Dataset, "join the right fleet")
	if got := w.get("/healthz"); got.code != http.StatusServiceUnavailable || !strings.Contains(got.body, b.self().Dataset) {
		t.Errorf("health: %d %s", got.code, got.body)
	}
	if pos := a.self().AppliedSeq; w.self().AppliedSeq != pos {
		t.Errorf("its data is at %d, was at %d", w.self().AppliedSeq, pos)
	}
}

func TestAddrsFile(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	path := filepath.Join(m.o.Data, addrsName)
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), m.p.Addrs().HTTP) || !strings.Contains(string(text), fmt.Sprint(os.Getpid())) {
		t.Errorf("%s %v", text, err)
	}
	p := m.p
	m.stop()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a clean stop: %v", err)
	}
	if err := p.Close(context.Background()); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if p.Err() != nil {
		t.Error(p.Err())
	}
}

// TestRetryReturned: whoever backs off from a node's addresses hears that it is back.
func TestRetryReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var retried []string
		members, changed := []gossip.Member{}, make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			retryReturned(ctx, func() ([]gossip.Member, <-chan struct{}) {
				mu.Lock()
				defer mu.Unlock()
				return members, changed
			}, func(addr string) {
				mu.Lock()
				defer mu.Unlock()
				retried = append(retried, addr)
			})
		})
		defer running.Wait()
		defer cancel()
		member := func(incarnation uint64, since time.Time, state string) gossip.Member {
			return gossip.Member{
				Facts: gossip.Facts{Name: "m1", State: state, PeerAddr: "peer", SwarmAddr: "swarm"},
				Addr:  "gossip", Incarnation: incarnation, Since: since,
			}
		}
		start := time.Now()
		for _, step := range []struct {
			what    string
			members []gossip.Member
			want    bool
		}{
			{"it is new", []gossip.Member{member(1, start, "serving")}, true},
			{"its facts change", []gossip.Member{member(1, start, "repairing")}, false},
			{"it fails", nil, false},
			{"it comes back", []gossip.Member{member(1, start.Add(time.Second), "serving")}, true},
			{"it was restarted and nobody noticed", []gossip.Member{member(2, start.Add(time.Second), "serving")}, true},
		} {
			mu.Lock()
			retried, members = nil, step.members
			close(changed)
			changed = make(chan struct{})
			mu.Unlock()
			time.Sleep(time.Second) // of the bubble's time
			synctest.Wait()
			mu.Lock()
			got := slices.Equal(retried, []string{"gossip", "peer", "swarm"})
			if got != step.want || !got && len(retried) > 0 {
				t.Errorf("%s: retried %v", step.what, retried)
			}
			mu.Unlock()
		}
	})
}
