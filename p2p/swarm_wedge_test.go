package p2p

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestNeverWedges rebuilds eight workers from one manager again and again: a
// swarm that stands still for a while or for ever shows in one run of many.
// QS_SWARM_RUNS and QS_SWARM_MIB make it longer than fits an ordinary test.
func TestNeverWedges(t *testing.T) {
	runs, mib := envInt(t, "QS_SWARM_RUNS", 3), envInt(t, "QS_SWARM_MIB", 8)
	p := newPayload(t, int64(mib)<<20)
	for i := range runs {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			manager, workers := newFleet(t, 8)
			seed(t, manager, p)
			start := time.Now()
			fetchAll(t, p, workers)
			t.Logf("%d MiB to %d workers in %v", mib, len(workers), time.Since(start).Round(time.Millisecond))
		})
	}
}

func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, v, err)
	}
	return n
}
