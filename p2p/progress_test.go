package p2p

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMeter(t *testing.T) {
	began := time.Unix(0, 0)
	m := newMeter(began)
	for _, step := range []struct {
		at   time.Duration
		add  int64
		want int64
	}{
		{0, 100, 0},
		{400 * time.Millisecond, 100, 0}, // too early to tell
		{time.Second, 300, 500},
		{2 * time.Second, 500, 500},
		{5 * time.Second, 0, 177}, // 800 within 4.5 s
		{6 * time.Second, 0, 111}, // 500
		{7 * time.Second, 0, 0},
		{time.Hour, 0, 0},
		{time.Hour + time.Second, 450, 100},
	} {
		now := began.Add(step.at)
		m.add(now, step.add)
		if got := m.perSecond(now); got != step.want {
			t.Errorf("after %v: %d bytes/s, want %d", step.at, got, step.want)
		}
	}
}

func TestProgressLeft(t *testing.T) {
	for _, c := range []struct {
		p    Progress
		want time.Duration
		ok   bool
	}{
		{Progress{Total: 100, Done: 50, Rate: 10}, 5 * time.Second, true},
		{Progress{Total: 100, Done: 50}, 0, false},
		{Progress{Total: 100, Done: 100}, 0, true},
	} {
		if got, ok := c.p.Left(); got != c.want || ok != c.ok {
			t.Errorf("%+v: %v %v left, want %v %v", c.p, got, ok, c.want, c.ok)
		}
	}
}

// TestSources accounts pieces to managers, the own colo and others.
func TestSources(t *testing.T) {
	p := newPayload(t, 4<<20)
	in := func(colo string) func(*SwarmOptions) { return func(o *SwarmOptions) { o.Colo = colo } }
	near, far, manager := newNode(t, "near", false), newNode(t, "far", false), newNode(t, "manager", true)
	near.Colo, far.Colo, manager.Colo = "a", "b", "a"
	w := newNode(t, "worker", false, in("a"))
	for _, c := range []struct {
		from *node
		want Source
	}{{manager, FromManagers}, {near, FromOwnColo}, {far, FromOtherColos}} {
		if got := w.source(c.from.Peer); got != c.want {
			t.Errorf("%s is of %v, want %v", c.from.Name, got, c.want)
		}
	}
	if got := w.source(Peer{}); got != FromOwnColo {
		t.Errorf("a peer that is not listed is of %v", got)
	}
	if _, ok := w.Progress(); ok {
		t.Error("progress of no fetch")
	}
	introduce(t, near, w)
	seed(t, near, p)
	start(t, w, p).wait(t)
	got, ok := w.Progress()
	want := [numSources]Received{FromOwnColo: {p.torrent.Size(), p.torrent.Pieces()}}
	if !ok || got.Running || got.From != want || w.Totals() != want || got.InfoHash != p.torrent.InfoHash() ||
		got.Done != got.Total || got.PiecesDone != got.Pieces || got.Fetched.Before(got.Began) || got.Rate != 0 {
		t.Errorf("progress %+v, %v", got, ok)
	}
}

// TestProgressOfAFetch looks at a fetch while it runs, when it is cancelled, and
// when it is resumed.
func TestProgressOfAFetch(t *testing.T) {
	p := newPayload(t, 6<<20)
	registry := prometheus.NewPedanticRegistry()
	manager := newNode(t, "manager", true, slow(3<<20))
	w := newNode(t, "worker", false, func(o *SwarmOptions) { o.Registerer = registry })
	introduce(t, manager, w)
	seed(t, manager, p)
	gauge := func(name string) float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == name {
				return f.Metric[0].Gauge.GetValue()
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}

	r := start(t, w, p)
	var got Progress
	eventually(t, "a rate", func() bool {
		got, _ = w.Progress()
		return got.Rate > 0
	})
	if !got.Running || !got.Fetched.IsZero() || got.Done <= 0 || got.Done >= got.Total || got.PiecesDone <= 0 ||
		got.From[FromManagers].Bytes < got.Done || got.From[FromManagers].Pieces < got.PiecesDone { // accounted just before it counts
		t.Errorf("progress %+v", got)
	}
	if size, done, rate := gauge("qs_swarm_fetch_size_bytes"), gauge("qs_swarm_fetch_done_bytes"), gauge("qs_swarm_fetch_bytes_per_second"); size != float64(got.Total) || done < float64(got.Done) || rate <= 0 {
		t.Errorf("metrics: %v of %v, %v a second", done, size, rate)
	}
	r.cancel()
	<-r.done
	got, ok := w.Progress()
	if !ok || got.Running || got.Rate != 0 || !got.Fetched.IsZero() || got.Done == 0 {
		t.Errorf("progress of the cancelled fetch: %+v, %v", got, ok)
	}
	if size := gauge("qs_swarm_fetch_size_bytes"); size != 0 {
		t.Errorf("without a fetch its size is %v", size)
	}

	kept := got.Done
	start(t, w, p).wait(t)
	got, _ = w.Progress()
	if got.Fetched.IsZero() || got.Done != got.Total || got.From[FromManagers].Bytes > got.Total-kept {
		t.Errorf("progress after the second fetch: %+v; %d bytes were there", got, kept)
	}
}
