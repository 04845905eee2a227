package gossip_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/gossip"
)

// memberlist's Shutdown does not wait for the probe that is under way, which
// ends by itself within a few seconds.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// waitFor polls until ok, for at most half a minute: the machine may be busy.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func find(g *gossip.Gossip, name string) (gossip.Member, bool) {
	for _, m := range g.Members() {
		if m.Name == name {
			return m, true
		}
	}
	return gossip.Member{}, false
}

// Three processes' worth of gossip over real sockets on loopback: they find
// each other, hear updates, notice a crash and a leave.
func TestSockets(t *testing.T) {
	start := func(name string, role gossip.Role, join ...string) *gossip.Gossip {
		g, err := gossip.Start(gossip.Options{
			Facts: gossip.Facts{Name: name, Role: role, Colo: "here", PeerAddr: "0.0.0.0:7", HTTPAddr: ":8", SwarmAddr: "1.2.3.4:9"},
			Addr:  "127.0.0.1:0",
			Join:  join,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Close() })
		return g
	}
	a := start("a", gossip.Manager)
	b := start("b", gossip.Worker, a.Addr().String())
	c := start("c", gossip.Worker, b.Addr().String(), "127.0.0.1:1") // nobody listens on port 1
	all := []*gossip.Gossip{a, b, c}
	for _, g := range all {
		waitFor(t, "everybody hears everybody", func() bool {
			n := 0
			for _, m := range g.Members() {
				if m.Liveness == gossip.Alive && m.Colo == "here" {
					n++
				}
			}
			return n == 3
		})
	}
	m, _ := find(c, "a")
	if m.PeerAddr != "127.0.0.1:7" || m.HTTPAddr != "127.0.0.1:8" || m.SwarmAddr != "1.2.3.4:9" || m.Addr != a.Addr().String() {
		t.Errorf("addresses of a as c sees them: %+v", m)
	}
	if got := c.Members()[0].Name; got != "c" {
		t.Errorf("c lists %s first, want itself", got)
	}
	if err := a.Update(func(f *gossip.Facts) { f.State = "serving"; f.Applied.Seq = 42 }); err != nil {
		t.Fatal(err)
	}
	for _, g := range all {
		waitFor(t, "a's update", func() bool { m, _ := find(g, "a"); return m.State == "serving" && m.Applied.Seq == 42 })
	}
	if err := b.Leave(2 * time.Second); err != nil {
		t.Errorf("leave: %v", err)
	}
	for _, g := range []*gossip.Gossip{a, c} {
		waitFor(t, "b left", func() bool { m, _ := find(g, "b"); return m.Liveness == gossip.Left && m.Colo == "here" })
	}
	crashed := time.Now()
	c.Close()
	waitFor(t, "c failed", func() bool { m, _ := find(a, "c"); return m.Liveness == gossip.Failed })
	t.Logf("a crash was noticed after %v", time.Since(crashed).Round(time.Millisecond))
	if _, err := gossip.Start(gossip.Options{Facts: gossip.Facts{Name: "x", Role: gossip.Worker}, Addr: a.Addr().String()}); err == nil {
		t.Error("a taken port was no error")
	} else {
		t.Log(err)
	}
}
