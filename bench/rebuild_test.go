package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// BenchmarkRebuild measures eight workers that own nothing, as processes on
// loopback, unshaped: the time from the start of the first to all of them
// serving; processor seconds of all processes per GB delivered; bytes that left
// the manager, in copies of the snapshot; and the peak of anonymous memory
// (RssAnon, which leaves the mapped file out) of a worker, and of the manager
// while it minted. The binary is $QS_PEER.
func BenchmarkRebuild(b *testing.B) {
	bin := os.Getenv("QS_PEER")
	if bin == "" {
		b.Skip("needs the built binary in QS_PEER: run make bench")
	}
	for _, mib := range []int{256, 1024} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) {
			f := newFigures()
			for b.Loop() {
				rebuild(b, bin, scaled(mib<<20), f)
			}
			f.report(b)
		})
	}
}

func rebuild(b *testing.B, bin string, size int, figures figures) {
	b.StopTimer()
	defer b.StartTimer()
	f := fleet.New(bin, b.TempDir())
	defer f.Close()
	m, err := f.Start(b.Context(), "manager", "m")
	check(b, err)
	load(b, m, size)
	peakMint := watchMemory(b, m)
	var snap struct{ Size int64 }
	post(b, m, "/v1/snapshots", nil, &snap)
	minting := peakMint()

	cpuBefore := cpu(b, m)
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
	used := cpu(b, m) - cpuBefore
	var fromManager int64
	for _, w := range workers {
		used += cpu(b, w)
		fromManager += members[w.Name].BytesFromManagers
	}
	figures.cost("s/rebuild", took.Seconds())
	figures.cost("cpu-s/GB", used.Seconds()/(8*float64(snap.Size)/1e9))
	figures.cost("egress-copies", float64(fromManager)/float64(snap.Size))
	figures.cost("worker-anon-MiB", peakWorker())
	figures.cost("minting-anon-MiB", minting)
	b.ReportMetric(float64(snap.Size)/(1<<20), "snapshot-MiB")
}

// load puts about size bytes of 1 KiB pairs.
func load(b *testing.B, m *fleet.Node, size int) {
	b.Helper()
	type op struct {
		Op    string `json:"op"`
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	rng := rand.New(rand.NewPCG(5, 6))
	const perEntry = 2000
	for done := 0; done < size; done += perEntry << 10 {
		ops := make([]op, perEntry)
		for i := range ops {
			// Digits do not compress to nothing, and need no escaping.
			value := make([]byte, 0, 1024)
			for len(value) < 980 {
				value = strconv.AppendUint(value, rng.Uint64(), 36)
			}
			ops[i] = op{"put", fmt.Sprintf("bench/%016x", rng.Uint64()), string(value)}
		}
		post(b, m, "/v1/txn", map[string]any{"ops": ops}, nil)
	}
}

func post(b *testing.B, n *fleet.Node, path string, body, answer any) {
	b.Helper()
	text, err := json.Marshal(body)
	check(b, err)
	resp, err := http.Post("http://"+n.Addrs.HTTP+path, "application/json", bytes.NewReader(text))
	check(b, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b.Fatalf("POST %s: %s", path, resp.Status)
	}
	if answer != nil {
		check(b, json.NewDecoder(resp.Body).Decode(answer))
	}
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
				most = max(most, rssAnon(n.PID()))
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

func rssAnon(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has just ended
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kib), "kB")), 64)
			return n / 1024
		}
	}
	return 0
}

// cpu returns the processor time that a running node has used.
func cpu(b *testing.B, n *fleet.Node) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
	check(b, err)
	// Fields 14 and 15, counted behind the name in parentheses, in ticks of 10 ms.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	check(b, err)
	system, err := strconv.Atoi(fields[12])
	check(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}
