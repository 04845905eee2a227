package bench

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// BenchmarkRebuild measures eight workers that own nothing, as processes on
// loopback, unshaped, over mutual TLS and, to compare, over plain TCP: the time from the start of the first to all of them
// serving; processor seconds of all processes per GB delivered; bytes that left
// the manager, in copies of the snapshot; and the peak of anonymous memory
// (RssAnon, which leaves the mapped file out) of a worker, and of the manager
// while it minted. The binary is $QS_PEER.
func BenchmarkRebuild(b *testing.B) {
	bin := os.Getenv("QS_PEER")
	if bin == "" {
		b.Skip("needs the built binary in QS_PEER: run make bench")
	}
	for _, c := range []struct {
		mib int
		tls bool
	}{{256, true}, {256, false}, {1024, true}} {
		b.Run(fmt.Sprintf("%dMiB/tls=%v", c.mib, c.tls), func(b *testing.B) {
			f := newFigures()
			for b.Loop() {
				rebuild(b, bin, scaled(c.mib<<20), c.tls, f)
			}
			f.report(b)
		})
	}
}

func rebuild(b *testing.B, bin string, size int, tls bool, figures figures) {
	b.StopTimer()
	defer b.StartTimer()
	dir := b.TempDir()
	f := fleet.New(bin, dir)
	defer f.Close()
	if tls {
		a, err := ca.Init(filepath.Join(dir, "ca"), ca.Options{TrustDomain: "bench.internal"})
		check(b, err)
		check(b, f.UseTLS(a))
	}
	m, err := f.Start(b.Context(), "manager", "m")
	check(b, err)
	check(b, load(b.Context(), m, int64(size), func(int64) {}))
	peakMint := watchMemory(b, m)
	var snap struct{ Size int64 }
	post(b, m, "/v1/snapshots", nil, &snap)
	minting := peakMint()

	cpuBefore, err := processTime(m.PID())
	check(b, err)
	names := []string{"m"}
	var workers []*fleet.Node
	b.StartTimer()
	began := time.Now()
	for i := range 8 {
		w, err := f.Start(b.Context(), "worker", "w"+strconv.Itoa(i+1))
		check(b, err)
		workers, names = append(workers, w), append(names, w.Name)
	}
	peakWorker := watchMemory(b, workers...)
	members, err := m.Converged(b.Context(), 5*time.Minute, names, nil)
	check(b, err)
	took := time.Since(began)
	b.StopTimer()
	used, err := processTime(m.PID())
	check(b, err)
	used -= cpuBefore
	var fromManager int64
	for _, w := range workers {
		t, err := processTime(w.PID())
		check(b, err)
		used += t
		fromManager += members[w.Name].BytesFromManagers
	}
	figures.cost("s/rebuild", took.Seconds())
	figures.cost("cpu-s/GB", used.Seconds()/(8*float64(snap.Size)/1e9))
	figures.cost("egress-copies", float64(fromManager)/float64(snap.Size))
	figures.cost("worker-anon-MiB", peakWorker())
	figures.cost("minting-anon-MiB", minting)
	b.ReportMetric(float64(snap.Size)/(1<<20), "snapshot-MiB")
}

func post(b *testing.B, n *fleet.Node, path string, body, answer any) {
	b.Helper()
	check(b, n.Call(b.Context(), http.MethodPost, path, body, answer))
}

// watchMemory samples RssAnon until the function it returns is called, which
// returns the greatest of any node, in MiB.
func watchMemory(b *testing.B, nodes ...*fleet.Node) (peak func() float64) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	result := make(chan float64)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var most float64
		for {
			for _, n := range nodes {
				most = max(most, float64(processMemory(n.PID()).anon)/(1<<20))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				result <- most
				return
			}
		}
	}()
	return func() float64 {
		cancel()
		return <-result
	}
}
