package gossip_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/memnet"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
	"github.com/qs-peer/qs-peer/txlog"
)

// sim is a fleet in memory, in virtual time.
type sim struct {
	*testing.T
	net   *memnet.Network
	ca    *trusttest.Authority // nil: without TLS
	nodes map[string]*gossip.Gossip
	reg   map[string]*prometheus.Registry
}

const seed = 7

// soon is within a few push-pulls, which bring what a broadcast missed. Mostly it takes
// a second.
const soon = 90 * time.Second

// simulate runs a scenario in virtual time on a network with some delay.
func simulate(t *testing.T, scenario func(s *sim)) {
	t.Helper()
	simulated(t, false, scenario)
}

// simulateBoth runs a scenario without TLS and with it.
func simulateBoth(t *testing.T, scenario func(s *sim)) {
	t.Helper()
	t.Run("plain", func(t *testing.T) { simulated(t, false, scenario) })
	t.Run("tls", func(t *testing.T) { simulated(t, true, scenario) })
}

// lossy returns how to run a scenario on a network that loses packets: TLS has none.
func lossy(loss float64) func(*testing.T, func(*sim)) {
	if loss > 0 {
		return simulate
	}
	return simulateBoth
}

func simulated(t *testing.T, secure bool, scenario func(s *sim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sim{T: t, net: memnet.New(seed), nodes: make(map[string]*gossip.Gossip), reg: make(map[string]*prometheus.Registry)}
		if secure {
			s.ca = trusttest.New(t)
		}
		s.net.SetDelay(time.Millisecond, 10*time.Millisecond)
		defer func() {
			for _, g := range s.nodes {
				g.Close()
			}
			time.Sleep(time.Minute) // memberlist does not wait for its probes
		}()
		scenario(s)
	})
}

// addr returns an address: i and otherPort+i are of the same host.
func addr(i int) string { return fmt.Sprintf("10.0.0.%d:%d", i%otherPort, 7946+i/otherPort) }

const otherPort = 256

func name(i int) string { return fmt.Sprintf("n%02d", i) }

// colo tells nodes of one name apart.
func colo(i int) string { return fmt.Sprintf("colo-of-%d", i) }

// start starts a node at addr(i), which joins the given addresses.
func (s *sim) start(name string, i int, join ...string) *gossip.Gossip {
	s.Helper()
	tr, err := s.net.Listen(addr(i))
	if err != nil {
		s.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	o := gossip.Options{
		Facts:      gossip.Facts{Name: name, Role: gossip.Worker, Colo: colo(i), State: "joining", PeerAddr: ":7947"},
		Join:       join,
		Transport:  tr,
		Registerer: reg,
	}
	if s.ca != nil {
		o.Transport, o.TLS = nil, s.secure(tr, name, i)
	}
	g, err := gossip.Start(o)
	if err != nil {
		s.Fatal(err)
	}
	s.nodes[name], s.reg[name] = g, reg
	return g
}

// secure puts TLS on a transport's streams. Its packets are not used.
func (s *sim) secure(tr *memnet.Transport, name string, i int) *gossip.TLS {
	s.Helper()
	id := trust.Identity{Domain: trusttest.Domain, Role: trust.RoleWorker, Colo: colo(i), Name: name}
	c, err := trust.Open(trust.Options{Files: s.ca.Issue(s.T, s.TempDir(), id, time.Now().Add(12*time.Hour))})
	if err != nil {
		s.Fatal(err)
	}
	return &gossip.TLS{
		Credentials: c,
		Listener:    tls.NewListener(&memListener{Transport: tr, down: make(chan struct{})}, c.ServerConfig()),
		Dial: func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
			timeout := time.Hour
			if end, ok := ctx.Deadline(); ok {
				timeout = time.Until(end)
			}
			conn, err := tr.DialTimeout(addr, timeout)
			if err != nil {
				return nil, err
			}
			secured := tls.Client(conn, c.ClientConfig(check))
			if err := secured.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return secured, nil
		},
	}
}

// memListener accepts a transport's streams.
type memListener struct {
	*memnet.Transport
	once sync.Once
	down chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.StreamCh():
		return c, nil
	case <-l.down:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.down) })
	return l.Shutdown()
}

func (l *memListener) Addr() net.Addr {
	ip, port, _ := l.FinalAdvertiseAddr("", 0)
	return &net.TCPAddr{IP: ip, Port: port}
}

// crash ends a node without a word.
func (s *sim) crash(name string) {
	s.nodes[name].Close()
	delete(s.nodes, name)
}

// within waits until ok and says how long that took.
func (s *sim) within(limit time.Duration, what string, ok func() bool) {
	s.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > limit {
			for _, g := range s.nodes {
				s.Logf("%s sees %s", g.Members()[0].Name, summary(g))
			}
			s.Logf("seed and traffic: %d %+v", seed, s.net.Stats())
			s.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(50 * time.Millisecond) // virtual
	}
	s.Logf("%s: after %v", what, time.Since(begin))
}

func summary(g *gossip.Gossip) (text string) {
	for _, m := range g.Members() {
		text += fmt.Sprintf("%s@%s %v %s %d; ", m.Name, m.Addr, m.Liveness, m.State, m.Applied.Seq)
	}
	return text
}

// all reports whether every running node sees every running node alive with
// the facts that it states itself, and nobody else alive.
func (s *sim) all() bool {
	for _, g := range s.nodes {
		alive := 0
		for _, m := range g.Members() {
			if m.Liveness != gossip.Alive {
				continue
			}
			alive++
			other := s.nodes[m.Name]
			if other == nil {
				return false
			}
			if own := other.Members()[0]; own.State != m.State || own.Applied != m.Applied || own.Colo != m.Colo {
				return false
			}
		}
		if alive != len(s.nodes) {
			return false
		}
	}
	return true
}

// see reports whether every running node sees name as ok wants.
func (s *sim) see(name string, ok func(gossip.Member) bool) func() bool {
	return func() bool {
		for _, g := range s.nodes {
			if m, found := find(g, name); !found || !ok(m) {
				return false
			}
		}
		return true
	}
}

func (s *sim) set(name, state string, seq uint64) {
	s.Helper()
	if err := s.nodes[name].Update(func(f *gossip.Facts) { f.State = state; f.Applied = txlog.Pos{Seq: seq} }); err != nil {
		s.Fatal(err)
	}
}

func TestConverge(t *testing.T) {
	for _, loss := range []float64{0, 0.2} {
		t.Run(fmt.Sprintf("loss %.0f%%", 100*loss), func(t *testing.T) {
			lossy(loss)(t, func(s *sim) {
				const nodes = 20
				s.net.SetLoss(loss)
				for i := range nodes {
					s.start(name(i), i+1, addr(1), addr(2))
				}
				s.within(soon, "20 nodes know each other", s.all)
				for i := range nodes {
					s.set(name(i), "serving", uint64(i))
				}
				s.within(soon, "20 updates are everywhere", s.all)
				st := s.net.Stats()
				if st.LargestPack > 1400 {
					t.Errorf("a packet of %d bytes", st.LargestPack)
				}
				if loss > 0 && st.Lost == 0 {
					t.Error("nothing was lost")
				}
				s.Logf("%+v", st)
				for n, r := range s.reg {
					if bad := counter(t, r, "qs_gossip_records_total", "bad"); bad > 0 {
						t.Errorf("%s refused %v records", n, bad)
					}
				}
			})
		})
	}
}

// counter adds up the samples of a metric that have a label of that value, or
// all if the value is empty.
func counter(t *testing.T, r *prometheus.Registry, metric, value string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			match := value == ""
			for _, l := range m.GetLabel() {
				match = match || l.GetValue() == value
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestPartitionHeals(t *testing.T) {
	for _, loss := range []float64{0, 0.2} {
		t.Run(fmt.Sprintf("loss %.0f%%", 100*loss), func(t *testing.T) {
			lossy(loss)(t, func(s *sim) {
				const nodes = 6
				var left, right []string
				for i := range nodes {
					s.start(name(i), i+1, addr(1))
					if i < nodes/2 {
						left = append(left, addr(i+1))
					} else {
						right = append(right, addr(i+1))
					}
				}
				s.within(soon, "all know each other", s.all)
				s.net.SetLoss(loss)
				s.net.Partition(left, right)
				s.within(time.Minute, "the other side is failed", func() bool {
					m, _ := find(s.nodes[name(nodes-1)], name(0))
					n, _ := find(s.nodes[name(0)], name(nodes-1))
					return m.Liveness == gossip.Failed && n.Liveness == gossip.Failed
				})
				s.set(name(0), "left", 10)
				s.set(name(nodes-1), "right", 11)
				time.Sleep(2 * time.Minute) // memberlist itself has forgotten the other side by then
				if m, _ := find(s.nodes[name(0)], name(nodes-1)); m.State != "joining" || m.Colo == "" {
					t.Errorf("last facts of a failed member: %+v", m)
				}
				s.net.Heal()
				s.within(2*time.Minute, "the partition is healed", s.all)
			})
		})
	}
}

func TestCrashLeaveAndReturn(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		for i := range 6 {
			s.start(name(i), i+1, addr(1))
		}
		s.within(soon, "6 nodes know each other", s.all)
		s.set(name(5), "serving", 5)
		s.within(soon, "update", s.all)

		s.crash(name(5))
		s.within(12*time.Second, "a crash is noticed", s.see(name(5), func(m gossip.Member) bool {
			return m.Liveness == gossip.Failed && m.Applied.Seq == 5 && time.Since(m.Since) < 12*time.Second
		}))
		if err := s.nodes[name(4)].Leave(5 * time.Second); err != nil {
			t.Error(err)
		}
		delete(s.nodes, name(4))
		s.within(soon, "a leave is noticed", s.see(name(4), func(m gossip.Member) bool { return m.Liveness == gossip.Left }))

		s.start(name(5), 6, addr(1))  // at the same address
		s.start(name(4), 14, addr(1)) // at another
		s.within(soon, "both are back with new facts", s.all)

		s.crash(name(3))
		s.start(name(3), 13, addr(1)) // at another address, while still believed alive
		s.within(soon, "a crashed node is back at another address", s.all)
		if err := s.nodes[name(3)].Conflict(); err != nil {
			t.Errorf("a dead predecessor is a conflict: %v", err)
		}
	})
}

func TestLeaveAndClose(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		alone := s.start("alone", 9)
		if err := alone.Leave(time.Second); err != nil {
			t.Errorf("leave of a lonely node: %v", err)
		}
		s.start("a", 1)
		b := s.start("b", 2, addr(1))
		c := s.start("c", 3, addr(1))
		delete(s.nodes, "alone")
		s.within(soon, "3 nodes know each other", s.all)
		s.net.Partition([]string{addr(1)}, []string{addr(2)}, []string{addr(3)})
		begin := time.Now()
		s.net.SetLoss(1)
		t.Logf("leave into the void: %v after %v", b.Leave(2*time.Second), time.Since(begin))
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("leave took %v", took)
		}
		c.Close()
		for _, g := range []*gossip.Gossip{b, c} {
			if err := errors.Join(g.Close(), g.Leave(time.Second), g.Close(), g.Update(func(f *gossip.Facts) { f.State = "gone" })); err != nil {
				t.Error(err)
			}
			if m := g.Members(); len(m) == 0 || m[0].State != "gone" {
				t.Errorf("after the end: %+v", m)
			}
		}
		delete(s.nodes, "b")
		delete(s.nodes, "c")
	})
}

func TestForget(t *testing.T) {
	simulate(t, func(s *sim) {
		s.start(name(0), 1)
		s.start(name(1), 2, addr(1))
		s.within(soon, "2 nodes know each other", s.all)
		s.crash(name(1))
		time.Sleep(23 * time.Hour)
		if m, ok := find(s.nodes[name(0)], name(1)); !ok || m.Liveness != gossip.Failed {
			t.Errorf("after 23 h: %+v", m)
		}
		time.Sleep(2 * time.Hour)
		if m, ok := find(s.nodes[name(0)], name(1)); ok {
			t.Errorf("after 25 h: %+v", m)
		}
	})
}

// A node that comes back with its clock hours behind is believed all the same.
func TestClockBack(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		for i := range 5 {
			s.start(name(i), i+1, addr(1))
		}
		s.nodes[name(4)].AdvanceClock(5 * time.Hour)
		s.set(name(4), "before", 100)
		s.within(soon, "5 nodes know each other", s.all)
		s.crash(name(4))
		s.start(name(4), 5, addr(1))
		s.set(name(4), "after", 7)
		s.within(soon, "facts with the clock back", s.all)
		if counter(t, s.reg[name(4)], "qs_gossip_records_total", "reborn") == 0 {
			t.Error("the node did not hear of its earlier life: the test shows nothing")
		}
		s.set(name(4), "later", 8)
		s.within(soon, "further facts", s.all)
	})
}

func TestOneNameTwice(t *testing.T) {
	for at, newcomer := range map[string]int{"another host": 4, "the same host": otherPort + 3} {
		t.Run(at, func(t *testing.T) { testOneNameTwice(t, newcomer) })
	}
}

func testOneNameTwice(t *testing.T, second int) {
	simulateBoth(t, func(s *sim) {
		a := s.start("a", 1)
		s.start("b", 2, addr(1))
		twin := s.start("twin", 3, addr(1))
		s.within(soon, "3 nodes know each other", s.all)
		time.Sleep(time.Second)
		newcomer := s.start("twin", second, addr(1)) // s.nodes now holds this one
		defer newcomer.Close()
		for range 90 {
			time.Sleep(time.Second)
			if m, _ := find(a, "twin"); m.Addr != addr(3) || m.Colo != colo(3) || m.Liveness != gossip.Alive {
				t.Fatalf("the first is not kept: %+v", m)
			}
		}
		var conflict *gossip.ConflictError
		if err := newcomer.Conflict(); !errors.As(err, &conflict) || conflict.Addr != addr(3) || conflict.Name != "twin" {
			t.Errorf("newcomer: %v", err)
		} else {
			t.Log(err)
		}
		if err := twin.Conflict(); err != nil {
			t.Errorf("the first: %v", err)
		}
		twin.Close()
		s.within(2*time.Minute, "the newcomer takes the name of a dead node", s.all)
		time.Sleep(2 * time.Minute)
		if err := newcomer.Conflict(); err != nil {
			t.Errorf("after the first died: %v", err)
		}
	})
}

// A node whose friends all vanished finds them again when they return, though
// they do not know it.
func TestEverybodyElseVanishes(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		s.start("seed", 1)
		s.start("lonely", 2, addr(1))
		s.within(soon, "2 nodes know each other", s.all)
		s.crash("seed")
		time.Sleep(time.Hour)
		s.start("seed", 1)
		s.within(soon, "together again", s.all)
	})
}

func TestLateSeed(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		s.start("early", 1, addr(2), addr(3))
		time.Sleep(10 * time.Minute)
		s.start("late", 3)
		s.within(soon, "the late one is found", s.all)
	})
}

func TestUpdateStorm(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		for i := range 3 {
			s.start(name(i), i+1, addr(1))
		}
		s.within(soon, "3 nodes know each other", s.all)
		before := counter(t, s.reg[name(0)], "qs_gossip_broadcasts_total", "")
		const updates, duration = 10_000, 10 * time.Second
		for i := range updates {
			s.set(name(0), "storm", uint64(i))
			time.Sleep(duration / updates)
		}
		s.set(name(0), "calm", updates)
		s.within(soon, "the last update", s.all)
		n := counter(t, s.reg[name(0)], "qs_gossip_broadcasts_total", "") - before
		t.Logf("%d updates in %v made %v broadcasts", updates+1, duration, n)
		if limit := 5*duration.Seconds() + 2; n > limit || n < 10 {
			t.Errorf("%v broadcasts, want 10 to %v", n, limit)
		}
	})
}

// Nodes of another dataset are listed, and told apart by their facts.
func TestOtherDataset(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		s.start("a", 1)
		s.start("b", 2, addr(1))
		mine, other := txlog.DatasetID{1}, txlog.DatasetID{2}
		s.nodes["a"].Update(func(f *gossip.Facts) { f.Dataset = mine })
		s.nodes["b"].Update(func(f *gossip.Facts) { f.Dataset = other })
		s.within(soon, "datasets are known", func() bool {
			m, _ := find(s.nodes["a"], "b")
			n, _ := find(s.nodes["b"], "a")
			return m.Dataset == other && n.Dataset == mine
		})
	})
}

func TestChanged(t *testing.T) {
	simulateBoth(t, func(s *sim) {
		a := s.start("a", 1)
		b := s.start("b", 2, addr(1))
		s.within(soon, "2 nodes know each other", s.all)
		time.Sleep(time.Minute)
		changed := a.Changed()
		select {
		case <-changed:
			t.Fatal("changed without a change")
		case <-time.After(time.Minute):
		}
		if err := b.Update(func(f *gossip.Facts) {}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
			t.Fatal("an update that changes nothing was told")
		case <-time.After(time.Minute):
		}
		s.set("b", "serving", 1)
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatal("a change was not told")
		}
	})
}

func TestUpdateRefusesWhatDoesNotFit(t *testing.T) {
	simulate(t, func(s *sim) {
		g := s.start("a", 1)
		long := strings.Repeat("x", 300)
		if err := g.Update(func(f *gossip.Facts) { f.Colo = long }); err == nil {
			t.Error("a colo of 300 bytes was taken")
		} else {
			t.Log(err)
		}
		err := g.Update(func(f *gossip.Facts) {
			f.Name, f.Role = "b", gossip.Manager
			for i := range 5 {
				f.Snapshots = append(f.Snapshots, gossip.Announcement{Pos: txlog.Pos{Seq: uint64(i)}, Size: 1})
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		m := g.Members()[0]
		if m.Name != "a" || m.Role != gossip.Worker {
			t.Errorf("name and role changed: %+v", m)
		}
		if len(m.Snapshots) != 3 || m.Snapshots[0].Pos.Seq != 4 || m.Snapshots[2].Pos.Seq != 2 {
			t.Errorf("announcements: %+v", m.Snapshots)
		}
		if n := testutil.CollectAndCount(s.reg["a"], "qs_gossip_members"); n != 1 {
			t.Errorf("%d member series", n)
		}
		for _, o := range []gossip.Options{
			{},
			{Facts: gossip.Facts{Name: "x"}},
			{Facts: gossip.Facts{Name: "x", Role: "king"}},
			{Facts: gossip.Facts{Name: long, Role: gossip.Worker}},
			{Facts: gossip.Facts{Name: "x", Role: gossip.Worker}, Addr: "nowhere"},
		} {
			if g, err := gossip.Start(o); err == nil {
				g.Close()
				t.Errorf("started with %+v", o)
			} else {
				t.Log(err)
			}
		}
	})
}
