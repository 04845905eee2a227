package peer

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
)

// TestScrubComparesUnderWrites: a fleet that is written to compares its stores with what
// was published before, finds no damage where there is none, and a pair that is wrong
// where its checksum is not.
func TestScrubComparesUnderWrites(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	m.putMany("k", 1000)
	scrub := func(n *testNode) (p ScrubResult) {
		t.Helper()
		a := n.do(http.MethodPost, "/v1/scrub?part=mint&rate=0", nil)
		var report ScrubReport
		a.json(t, &report)
		if a.code != http.StatusOK || len(report.Parts) != 1 || report.Sound != (len(report.Parts[0].Damage) == 0 && report.Parts[0].Error == "") {
			t.Fatalf("scrub: %d %s", a.code, a.body)
		}
		return report.Parts[0]
	}
	if p := scrub(m); p.Skipped != "no snapshot is held" || p.Read != "nothing" {
		t.Errorf("without a snapshot: %+v", p)
	}
	if got := m.metric(`qs_scrub_passes_total{part="mint",result="skipped"}`); got != "1" {
		t.Errorf("%s passes were skipped", got)
	}
	m.mint()
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(m.self().AppliedSeq)
	eventually(t, "the worker has the snapshot", func() bool { return len(w.offers()) == 1 })

	var writing sync.WaitGroup
	done := make(chan struct{})
	writing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				m.put(fmt.Sprintf("other-%d", i%50), strings.Repeat("v", i*97%9000))
			}
		}
	})
	stop := sync.OnceFunc(func() { close(done); writing.Wait() })
	defer stop()
	for range 5 {
		for _, n := range []*testNode{m, w} {
			if p := scrub(n); len(p.Damage) > 0 || p.Error != "" || p.Skipped != "" || p.Bytes == 0 || !strings.Contains(p.Read, " 1000 pairs, ") {
				t.Errorf("%s: %+v", n.o.Name, p)
			}
		}
	}
	if got := w.metric(`qs_scrub_passes_total{part="mint",result="sound"}`); got != "5" {
		t.Errorf("%s sound passes", got)
	}
	if got := w.metric(`qs_scrub_mint_pieces{compared="all"}`); got == "0" {
		t.Errorf("%s pieces were compared", got)
	}

	value := strings.Repeat("7", 200)
	w.forge("k-00507", value, strings.Replace(value, "7", "6", 1))
	if p := scrub(w); len(p.Damage) != 1 {
		t.Errorf("of the damaged store: %+v", p)
	}
	stop()
	eventually(t, "the worker is mended", func() bool {
		return w.metric(`qs_repairs_total{kind="store_local",result="ok"}`) == "1" && w.get("/readyz").code == http.StatusOK
	})
	w.caughtUp(m.self().AppliedSeq)
	wantSame(t, m, w)
	if p := scrub(w); len(p.Damage) > 0 || p.Error != "" || p.Skipped != "" {
		t.Errorf("after it was mended: %+v", p)
	}
}
