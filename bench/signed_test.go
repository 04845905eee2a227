package bench

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
)

// BenchmarkSignedCatchUp measures what it costs that a worker which follows the log
// from its first entry proves every entry by signed heads: rounds without and with
// follow each other, in one process.
func BenchmarkSignedCatchUp(b *testing.B) {
	n := scaled(500_000)
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	keys := signingtest.New(b, "m")
	f := newFigures()
	for b.Loop() {
		var took, used [2]time.Duration
		for round, signed := range []bool{false, true} {
			dir := b.TempDir()
			writer := options(filepath.Join(dir, "m"), "m", gossip.Manager)
			worker := options(filepath.Join(dir, "w"), "w", gossip.Worker)
			if signed {
				writer.TrustedKeys, writer.SigningKey = keys.Trusted, keys.Path("m")
				worker.TrustedKeys = keys.Trusted
			}
			b.StopTimer()
			start(b, writer).close()
			appendEntries(b, filepath.Join(dir, "m", "log"), order)
			m := start(b, writer)
			m.applied(uint64(n) + 1)
			worker.Join = []string{m.Addrs().Gossip}
			b.StartTimer()
			began, before := time.Now(), processorTime(b)
			w := start(b, worker)
			w.applied(uint64(n) + 1)
			took[round], used[round] = time.Since(began), processorTime(b)-before
			b.StopTimer()
			w.close()
			m.close()
			b.StartTimer()
			f.rate(fmt.Sprintf("entries/s-signed=%v", signed), float64(n)/took[round].Seconds())
			f.cost(fmt.Sprintf("cpu-us/entry-signed=%v", signed), float64(used[round].Microseconds())/float64(n))
		}
		f.cost("x-time", took[1].Seconds()/took[0].Seconds())
		f.cost("x-cpu", used[1].Seconds()/used[0].Seconds())
	}
	f.report(b)
}
