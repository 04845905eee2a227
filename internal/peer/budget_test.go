package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

// A small disk budget: first there is an alarm, then the oldest snapshots and log go,
// though a worker that is away needs them, and the newest snapshot stays. The worker
// comes back, finds no log that leads on from where it is, and is made anew by itself.
func TestDiskBudget(t *testing.T) {
	const budget = 16 << 20
	lines := &logLines{}
	m := newNode(t, "m1", gossip.Manager)
	m.o.DiskBudget = budget
	m.o.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(lines, t.Output()), nil))
	m.start()
	m.putMany("k", 500)
	m.mint()
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(2)
	away := w.self().AppliedSeq
	w.stop()

	value := strings.Repeat("0123456789abcdef", 32<<10) // 512 KiB, always of one key: the log grows, the data does not
	// Measured every 2 s, which is time to write the budget several times over: after a batch
	// of less than half of it, the measurement is waited for.
	const batch = 12
	write := func(until func() bool) {
		t.Helper()
		for i := 0; !until(); i += batch {
			if i > 200 {
				t.Fatalf("%d writes, and not yet; disk used %d of %d", i, m.self().DiskUsed, m.self().DiskBudget)
			}
			before := m.self().DiskUsed
			for j := range batch {
				if a := m.do(http.MethodPut, kvPath("large"), strings.NewReader(fmt.Sprint(i+j)+value)); a.code != http.StatusOK {
					t.Fatalf("put: %d %s", a.code, a.body)
				}
			}
			// What was written may be freed again, to the byte, by what ends the loop.
			eventually(t, "the directory is measured", func() bool { return until() || m.self().DiskUsed != before })
		}
	}
	// It may pass both limits between two looks.
	write(func() bool { return lines.contain("the disk budget is nearly used up") })
	if first := m.self().LogFirst; first != 1 && !lines.contain("the log's oldest entries go") {
		t.Errorf("the log begins at %d, and nobody was told", first)
	}
	m.mint()
	newest := m.mint()
	write(func() bool { return m.self().LogFirst > away+1 })
	if got := m.offers(); len(got) == 0 || got[0] != newest.InfoHash {
		t.Errorf("offers %v, and the newest is %s", got, newest.InfoHash)
	}
	if first := m.self().LogFirst; first > newest.Seq+1 {
		t.Errorf("the log begins at %d, after the newest snapshot, %d", first, newest.Seq)
	}
	last := m.put("last", "entry")
	w.start()
	w.caughtUp(last)
	wantSame(t, m, w)
	if body := w.get("/metrics").body; !strings.Contains(body, "qs_replica_rebuilds_total 1") {
		t.Error("the worker was not made anew")
	}
}

// TestBudgetTakesEvidence: what is kept of damage goes before anything that somebody
// needs, the oldest first, and no more than has to; not what a repair may read still.
func TestBudgetTakesEvidence(t *testing.T) {
	const size = 256 << 10
	w := newWard(t)
	log, err := txlog.Open(filepath.Join(w.dir, logDir), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	lines := &logLines{}
	logger := slog.New(slog.NewTextHandler(io.MultiWriter(lines, t.Output()), nil))
	k := &keeper{
		storage: &storage{dir: w.dir, store: w.store, log: log, infirmary: w.infirmary}, logger: logger,
		disk: newDiskBudget(w.dir, 1<<40, logger, prometheus.NewRegistry()),
	}
	paths := []string{ // the oldest first
		"damaged-20260101T000000Z/store/data.mdb", "store/gen-000007.damaged/data.mdb", "log/00000000000000000001.log.damaged",
		"snapshots/snapshot-00000000000000000003-0123456789abcdef.torrent.damaged", "evidence/fork-1-2-3.json", "snapshots/more.mdb",
	}
	for i, path := range paths {
		path = filepath.Join(w.dir, path)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, bytes.Repeat([]byte{1}, size), 0o644))
		for p := path; p != w.dir; p = filepath.Dir(p) {
			err = errors.Join(err, os.Chtimes(p, time.Time{}, time.Unix(int64(1000+i), 0)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	left := func() (there []int) {
		for i, path := range paths {
			if _, err := os.Stat(filepath.Join(w.dir, path)); err == nil {
				there = append(there, i)
			}
		}
		return there
	}
	keep := func(over int64) {
		t.Helper()
		if err := k.disk.measure(); err != nil {
			t.Fatal(err)
		}
		k.disk.limit, k.disk.measured = max(1, k.disk.used.Load()-over), time.Time{}
		if err := k.disk.keep(k.forget); err != nil {
			t.Fatal(err)
		}
	}
	if keep(-1); len(left()) != len(paths) {
		t.Errorf("within the budget: left %v", left())
	}
	if keep(1); !slices.Equal(left(), []int{1, 2, 3, 4, 5}) || !lines.contain("evidence of damage goes because the disk budget is used up") || !lines.contain("damaged-20260101T000000Z") {
		t.Errorf("a byte over it: left %v", left())
	}
	w.report(finding{Part: partStore, Err: errors.New("page 7 is damaged")})
	if keep(1); !slices.Equal(left(), []int{1, 3, 4, 5}) {
		t.Errorf("in quarantine: left %v", left())
	}
	w.Tried(replica.Local, nil)
	if keep(10 * size); !slices.Equal(left(), []int{4, 5}) {
		t.Errorf("far over it: left %v", left())
	}
	if got := testutil.ToFloat64(k.disk.freed.WithLabelValues("evidence")); got != 4 {
		t.Errorf("%v were counted", got)
	}
}
