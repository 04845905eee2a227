package p2p

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// BenchmarkSwarm8 has one manager seed to eight workers, in one process, over
// unshaped loopback. Besides the time of a rebuild it reports processor seconds
// per GB delivered (hashing and copying of all nine nodes included) and what the
// manager sent, in copies of the file.
func BenchmarkSwarm8(b *testing.B) {
	for _, size := range []int64{64 << 20, 256 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			const workers = 8
			p := newPayload(b, size)
			path := p.file(b)
			var seconds, cpu, egress float64
			for b.Loop() {
				b.StopTimer()
				manager, nodes := newFleet(b, workers)
				if err := manager.Seed(p.torrent, path); err != nil {
					b.Fatal(err)
				}
				before, start := processorTime(b), time.Now()
				b.StartTimer()
				fetchAll(b, p, nodes)
				b.StopTimer()
				seconds += time.Since(start).Seconds()
				cpu += (processorTime(b) - before).Seconds()
				for _, n := range nodes {
					egress += float64(n.Totals()[FromManagers].Bytes)
					n.Close()
				}
				manager.Close()
				b.StartTimer()
			}
			n := float64(b.N)
			b.SetBytes(size * workers)
			b.ReportMetric(seconds/n, "s/rebuild")
			b.ReportMetric(cpu/n/(float64(size*workers)/1e9), "cpu-s/GB")
			b.ReportMetric(egress/n/float64(size), "manager-copies")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
