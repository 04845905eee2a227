package gossip_test

import (
	"net"
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
	t.Parallel()
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

// A datagram that claims a member which can not be one must not keep the others
// from joining, which one member of another protocol version does.
func TestStrayMembers(t *testing.T) {
	start := func(name string, join ...string) *gossip.Gossip {
		g, err := gossip.Start(gossip.Options{
			Facts: gossip.Facts{Name: name, Role: gossip.Worker}, Addr: "127.0.0.1:0", Join: join,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Close() })
		return g
	}
	a := start("a")
	conn, err := net.Dial("udp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := func(s string) string { return string([]byte{0xa0 | byte(len(s))}) + s }
	// An alive message (type 4) in MessagePack.
	alive := func(name, addr, vsn string) {
		msg := "\x04\x86" + text("Incarnation") + "\x01" + text("Node") + text(name) + text("Addr") + text(addr) +
			text("Port") + "\x09" + text("Meta") + text("") + text("Vsn") + text(vsn)
		if _, err := conn.Write([]byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	const here, good = "\x7f\x00\x00\x01", "\x01\x05\x02\x00\x00\x00"
	for _, stray := range []struct{ name, addr, vsn string }{
		{"", here, good},
		{"noaddress", "", good},
		{"anywhere", "\x00\x00\x00\x00", good},
		{"noversion", here, ""},
		{"old", here, "\x01\x01\x01\x00\x00\x00"},
		{"new", here, "\x03\x05\x05\x00\x00\x00"},
		{"other", here, "\x01\x05\x02\x02\x02\x02"},
	} {
		alive(stray.name, stray.addr, stray.vsn)
	}
	alive("possible", here, good) // the last one: the others were handled before it
	waitFor(t, "a believes what can be", func() bool { _, ok := find(a, "possible"); return ok })
	if n := len(a.Members()); n != 2 {
		t.Errorf("a lists %v", a.Members())
	}
	b := start("b", a.Addr().String())
	waitFor(t, "b joins", func() bool { _, ok := find(b, "a"); return ok })
}
