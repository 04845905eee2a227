package txlog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// BenchmarkAppend appends 150-byte entries from 64 goroutines with fsync on. It
// reports x-bare-fsync: entries per second over the number of times per second
// that one goroutine alone can append as many bytes to a file and fsync it.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			bare := bareFsyncs(b, 150)
			reg := prometheus.NewRegistry()
			l := created(b, b.TempDir(), Options{Registerer: reg})
			ops := put("a key of twenty byte", string(make([]byte, 20)))
			ctx := context.Background()
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if _, err := l.Append(ctx, ops); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			rate := float64(b.N) / b.Elapsed().Seconds()
			b.ReportMetric(rate, "entries/s")
			b.ReportMetric(rate/bare, "x-bare-fsync")
			b.ReportMetric(float64(b.N)/float64(fsyncs(b, reg)), "entries/fsync")
		})
	}
}

// bareFsyncs returns how many appends of size bytes, each fsynced, a plain loop
// does per second.
func bareFsyncs(b *testing.B, size int) float64 {
	f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
	must(b, err)
	defer f.Close()
	buf := make([]byte, size)
	start, n := time.Now(), 0
	for time.Since(start) < 300*time.Millisecond {
		_, err := f.Write(buf)
		must(b, err)
		must(b, f.Sync())
		n++
	}
	return float64(n) / time.Since(start).Seconds()
}

// BenchmarkRead reads a log of 200-byte entries from the start, verifying every
// hash.
func BenchmarkRead(b *testing.B) {
	const n = 100_000
	l := created(b, b.TempDir(), Options{})
	frames := make([]Entry, 0, n)
	at := l.Head()
	value := make([]byte, 77)
	for i := range n {
		e, err := Seal(at, writerEpoch, time.Unix(0, int64(i)), []Op{{Kind: Put, Key: fmt.Appendf(nil, "key-%016d", i), Value: value}})
		must(b, err)
		frames, at = append(frames, e), e.Pos()
	}
	_, err := l.AppendEntries(frames)
	must(b, err)
	b.SetBytes(l.Bytes())
	b.ReportAllocs()
	b.ResetTimer()
	entries := 0
	for range b.N {
		r, err := l.Reader(Pos{})
		must(b, err)
		for seq := uint64(0); seq < at.Seq; {
			some, err := r.Next(context.Background(), 1<<20)
			must(b, err)
			seq = some[len(some)-1].Seq
			entries += len(some)
		}
		must(b, r.Close())
	}
	b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkSeek opens a reader in the middle of a full segment.
func BenchmarkSeek(b *testing.B) {
	const n = 200_000
	dir := b.TempDir()
	l := created(b, dir, Options{})
	var mid Pos
	at := l.Head()
	var frames []Entry
	for i := range n {
		e, err := Seal(at, writerEpoch, time.Unix(0, int64(i)), put("key", "value"))
		must(b, err)
		frames, at = append(frames, e), e.Pos()
		if i == n/2 {
			mid = at
		}
	}
	_, err := l.AppendEntries(frames)
	must(b, err)
	for _, indexed := range []bool{true, false} {
		b.Run(fmt.Sprintf("indexed=%t", indexed), func(b *testing.B) {
			st := l.snapshot()
			s := st.tail()
			for range b.N {
				if !indexed {
					s.forget(0)
				}
				r, err := l.Reader(mid)
				must(b, err)
				must(b, r.Close())
			}
		})
	}
}

// fsyncs returns how many batches the log that uses reg has written.
func fsyncs(b *testing.B, reg *prometheus.Registry) uint64 {
	families, err := reg.Gather()
	must(b, err)
	for _, f := range families {
		if f.GetName() == "qs_log_fsync_entries" {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	b.Fatal("no such metric")
	return 0
}
