package lease

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestGrants goes through what may happen to one piece.
func TestGrants(t *testing.T) {
	const piece = 5
	for _, c := range []struct {
		name string
		then func(*Grants)
		now  time.Duration
		ok   bool
	}{
		{"while it is being sent", func(g *Grants) {}, time.Second, false},
		{"when sending takes too long", func(g *Grants) {}, holdMin, true},
		{"just after it was sent", func(g *Grants) { g.Done("c", "a", piece, true, time.Second) }, time.Second, false},
		{"when it should have spread", func(g *Grants) { g.Done("c", "a", piece, true, time.Second) }, time.Second + spreadFor, true},
		{"after sending failed", func(g *Grants) { g.Done("c", "a", piece, false, time.Second) }, time.Second, true},
		{"after the worker went while it was being sent", func(g *Grants) { g.Gone("a") }, time.Second, true},
		{"after the worker went that had it", func(g *Grants) { g.Done("c", "a", piece, true, time.Second); g.Gone("a") }, time.Second, true},
		{"after somebody else went", func(g *Grants) { g.Gone("z") }, time.Second, false},
		{"after somebody else's end", func(g *Grants) { g.Done("c", "z", piece, false, 0); g.Done("d", "a", piece, false, 0) }, time.Second, false},
	} {
		g := NewGrants()
		if ok, _, _ := g.Ask("c", "a", piece, 0); !ok {
			t.Fatal("refused to the first")
		}
		c.then(g)
		if ok, _, _ := g.Ask("d", "x", piece, c.now); !ok {
			t.Errorf("%s: refused to another colo", c.name)
		}
		ok, holder, retry := g.Ask("c", "b", piece, c.now)
		if ok != c.ok || !ok && (holder != "a" || retry <= 0) {
			t.Errorf("%s: %v %q %v, want %v", c.name, ok, holder, retry, c.ok)
		}
		if ok, _, _ := g.Ask("c", "b", piece, c.now+retry); !ok {
			t.Errorf("%s: refused after the time that was told", c.name)
		}
	}
}

// TestOneOfAColo: whatever is asked, never are two workers of a colo sent one piece
// within the time that it is held for the first.
func TestOneOfAColo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type key struct {
			colo  string
			piece int
		}
		type sent struct {
			who string
			at  time.Duration
		}
		g, last := NewGrants(), map[key]sent{}
		now := time.Duration(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond
			colo := rapid.SampledFrom([]string{"c", "d"}).Draw(t, "colo")
			who := colo + rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "who")
			k := key{colo, rapid.IntRange(0, 3).Draw(t, "piece")}
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				g.Gone(who)
				for k, s := range last {
					if s.who == who {
						delete(last, k)
					}
				}
			case 1, 2:
				g.Done(colo, who, k.piece, true, now)
			case 3:
				g.Done(colo, who, k.piece, false, now)
				if last[k].who == who {
					delete(last, k)
				}
			default:
				ok, _, _ := g.Ask(colo, who, k.piece, now)
				if s, held := last[k]; ok && held && s.who != who && now-s.at < holdMin {
					t.Fatalf("piece %d went to %s and, %v later, to %s", k.piece, s.who, now-s.at, who)
				}
				if ok {
					last[k] = sent{who, now}
				}
			}
		}
	})
}
