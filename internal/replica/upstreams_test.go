package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// TestTree lets the nodes of three colos choose whom to follow: the links must
// form a tree towards the writer, shallow, and nobody may be overrun.
func TestTree(t *testing.T) {
	type member struct {
		Upstream
		colo string
	}
	head := txlog.Pos{Seq: 100, Hash: txlog.Hash{1}}
	var all []member
	add := func(name, colo string, writer, manager bool) {
		all = append(all, member{Upstream{Name: name, First: 1, Head: head, Writer: writer, Manager: manager}, colo})
	}
	add("writer", "a", true, true)
	add("second", "a", false, true)
	add("third", "b", false, true)
	for i := range 100 {
		add(fmt.Sprintf("worker-%d", i), string("abc"[i%3]), false, false)
	}
	follows := make(map[string]string)
	followers := make(map[string]int)
	for _, self := range all {
		if self.Writer {
			continue
		}
		var others []Upstream
		for _, m := range all {
			if m.Name != self.Name {
				m.Near = m.colo == self.colo
				others = append(others, m.Upstream)
			}
		}
		s := newUpstreams(self.Name, self.Manager)
		u, ok, _ := s.choose(s.rank(others, head), time.Now())
		if !ok {
			t.Fatalf("%s finds nobody", self.Name)
		}
		follows[self.Name] = u.Name
		followers[u.Name]++
	}
	for name := range follows {
		depth := 0
		for at := name; at != "writer"; at = follows[at] {
			if depth++; depth > 5 {
				t.Fatalf("%s is more than 5 links away from the writer", name)
			}
		}
	}
	for name, n := range followers {
		if n > fanOut+2 { // and the first of each other colo
			t.Errorf("%s has %d followers", name, n)
		}
	}
}

func TestBackoff(t *testing.T) {
	now := time.Unix(0, 0)
	for failures, most := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		var sum time.Duration
		const rounds = 1000
		for range rounds {
			b := backoff{failures: failures}
			b.fail(now, upstreamBase, upstreamMax)
			d := b.until.Sub(now)
			if d <= 0 || d > most*time.Millisecond {
				t.Fatalf("after %d failures: %v", failures, d)
			}
			sum += d
		}
		if mean := sum / rounds; mean < most*time.Millisecond/3 {
			t.Errorf("after %d failures: %v on average", failures, mean)
		}
	}
	b := backoff{failures: 1 << 30}
	if b.fail(now, upstreamBase, upstreamMax); b.until.Sub(now) > upstreamMax {
		t.Error("no upper bound")
	}
}
