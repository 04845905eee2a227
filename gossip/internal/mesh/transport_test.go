package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// wire is a network of pipes, for tests in virtual time.
type wire struct {
	mu    sync.Mutex // guards hosts
	hosts map[string]*pipeListener
}

type pipeListener struct {
	addr  net.Addr
	conns chan net.Conn
	down  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.down:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.down) }); return nil }
func (l *pipeListener) Addr() net.Addr { return l.addr }

// from is a pipe's end that says who is at the other.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// dial connects a client at an address to the host at addr.
func (w *wire) dial(ctx context.Context, at net.Addr, addr string, c *tls.Config) (*tls.Conn, error) {
	w.mu.Lock()
	l := w.hosts[addr]
	w.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	select {
	case l.conns <- from{far, at}:
	case <-l.down:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn := tls.Client(near, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		near.Close()
		return nil, err
	}
	return conn, nil
}

// node is a transport under test, with what came out of it.
type node struct {
	*Transport
	*testing.T
	wire  *wire
	addr  string
	creds *trust.Credentials

	mu       sync.Mutex // guards what follows
	dropped  map[trust.Reason]int
	messages []string
	packets  []string
	states   []string
	known    map[string]string // addresses by name
	bad      bool              // messages and states are
}

// start attaches a node to the network and takes the packets it gets.
func (w *wire) start(t *testing.T, c *trust.Credentials, addr string) *node {
	l := &pipeListener{addr: addrOf(t, addr), conns: make(chan net.Conn), down: make(chan struct{})}
	w.mu.Lock()
	w.hosts[addr] = l
	w.mu.Unlock()
	n := &node{T: t, wire: w, addr: addr, creds: c, dropped: make(map[trust.Reason]int), known: make(map[string]string)}
	n.Transport = New(Options{
		Listener: tls.NewListener(l, c.ServerConfig()),
		Dial: func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
			return w.dial(ctx, l.addr, addr, c.ClientConfig(check))
		},
		Where: func(name, addr string) (there, known bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			at, known := n.known[name]
			return at == addr, known
		},
		Left: func(string) bool { return false },
		Message: func(from trust.Identity, b []byte) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.messages = append(n.messages, from.Name+": "+string(b))
			return n.bad
		},
		State: func(from trust.Identity, b []byte) int {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.states = append(n.states, from.Name+": "+string(b))
			return 0
		},
		Dropped: func(r trust.Reason, who string, err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.dropped[r]++
			if n.dropped[r] == 1 {
				t.Logf("%s: %s: %s: %v", addr, r, who, err)
			}
		},
	})
	n.Start()
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		for {
			select {
			case p := <-n.PacketCh():
				n.mu.Lock()
				n.packets = append(n.packets, string(p.Buf))
				n.mu.Unlock()
			case <-n.ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		if err := errors.Join(n.Shutdown(), n.Shutdown()); err != nil {
			t.Error(err)
		}
		<-taken
		if held := n.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
		if n := n.roster.inUse(); n != 0 {
			t.Errorf("%d connections are still counted", n)
		}
	})
	return n
}

func addrOf(t *testing.T, addr string) net.Addr {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return tcp
}

// seen returns what the node got, after everything has settled.
func (n *node) seen() (messages, packets []string) {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.messages), slices.Clone(n.packets)
}

func (n *node) drops(r trust.Reason) int {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dropped[r]
}

func (n *node) know(name, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known[name] = addr
}

// raw connects to n as c, and sends what the caller writes.
func (n *node) raw(c *trust.Credentials) *tls.Conn {
	n.Helper()
	conn, err := n.wire.dial(n.Context(), addrOf(n.T, a9), n.addr, c.ClientConfig(nil))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { conn.NetConn().Close() })
	return conn
}

func (n *node) write(conn net.Conn, b []byte) {
	n.Helper()
	conn.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write(b); err != nil {
		n.Fatal(err)
	}
}

// ended waits until the other side closes the connection and says how long it took.
func ended(conn net.Conn) time.Duration {
	begin := time.Now()
	conn.SetReadDeadline(begin.Add(24 * time.Hour))
	conn.Read(make([]byte, 1))
	return time.Since(begin)
}

const a1, a2, a3, a9 = "10.0.0.1:7946", "10.0.0.2:7946", "10.0.0.3:7946", "10.0.0.9:7946"

// meshed runs a scenario with two nodes, m1 and w1, that know each other.
func meshed(t *testing.T, scenario func(t *testing.T, ca *trusttest.Authority, w *wire, m, n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := trusttest.New(t)
		w := &wire{hosts: make(map[string]*pipeListener)}
		m := w.start(t, ca.Open(t, trust.RoleManager, "m1"), a1)
		n := w.start(t, ca.Open(t, trust.RoleWorker, "w1"), a2)
		m.know("w1", a2)
		n.know("m1", a1)
		scenario(t, ca, w, m, n)
	})
}

func address(name, addr string) memberlist.Address { return memberlist.Address{Name: name, Addr: addr} }

func (n *node) to(b []byte, name, addr string) {
	n.Helper()
	if _, err := n.WriteToAddress(b, address(name, addr)); err != nil {
		n.Fatal(err)
	}
}

// A packet's messages arrive: those of the user first, with who sent them.
func TestPackets(t *testing.T) {
	meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
		p := message(t, pingMsg, ping{SourceNode: "w1"})
		n.to(compound(p, []byte("\x08record"), acked(t, 1)), "m1", a1)
		n.to([]byte("\x08again"), "m1", a1)
		messages, packets := m.seen()
		if !slices.Equal(messages, []string{"w1: record", "w1: again"}) || !slices.Equal(packets, []string{string(p), string(acked(t, 1))}) {
			t.Errorf("messages %q, packets %q", messages, packets)
		}
		if in, out := m.roster.inUse(), n.links.inUse(); in != 1 || out != 1 {
			t.Errorf("%d connections in and %d out", in, out)
		}
		// Both sides agree on when it is over.
		time.Sleep(linkIdle - time.Second)
		n.to([]byte("\x08late"), "m1", a1)
		time.Sleep(linkIdle - time.Second)
		if in := m.roster.inUse(); in != 1 {
			t.Errorf("%d connections while one is used", in)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if in, out := m.roster.inUse(), n.links.inUse(); in != 0 || out != 0 {
			t.Errorf("%d connections in and %d out after a while", in, out)
		}
		n.to([]byte("\x08anew"), "m1", a1)
		if messages, _ := m.seen(); len(messages) != 4 {
			t.Errorf("messages %q", messages)
		}
	})
}

// Packets go back over the connection that brought some, as long as its maker keeps it;
// then over one that is made anew. None is lost when it ends.
func TestPacketsGoBack(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, w *wire, m, n *node) {
		n.to([]byte("\x08there"), "m1", a1)
		m.seen()
		open := func(mIn, nIn int) {
			t.Helper()
			synctest.Wait()
			if got := [2]int{m.roster.inUse(), n.roster.inUse()}; got != [2]int{mIn, nIn} {
				t.Fatalf("m1 and w1 accepted %v connections that are open; want %d and %d", got, mIn, nIn)
			}
		}
		sent := 0
		back := func() {
			t.Helper()
			sent++
			m.to([]byte("\x08back"), "w1", a2)
			if messages, _ := n.seen(); len(messages) != sent {
				t.Fatalf("%d messages of %d", len(messages), sent)
			}
		}
		back()
		open(1, 0)
		for range 20 { // packets one way keep it, though its maker sends none
			time.Sleep(backIdle - time.Second)
			back()
		}
		open(1, 0)
		time.Sleep(backIdle + time.Second) // too close to when w1 ends it
		back()
		open(1, 1)
		time.Sleep(linkIdle - backIdle)
		open(0, 1) // w1 ended its own; what it sends goes back over m1's
		n.to([]byte("\x08there"), "m1", a1)
		if messages, _ := m.seen(); len(messages) != 2 {
			t.Fatalf("messages %q", messages)
		}
		open(0, 1)
		time.Sleep(inboundIdle)
		open(0, 0)

		// One that ends with packets under way is replaced.
		n.to([]byte("\x08there"), "m1", a1)
		m.seen()
		back()
		n.Shutdown()
		n2 := w.start(t, n.creds, a2)
		m.to([]byte("\x08back"), "w1", a2)
		if messages, _ := n2.seen(); len(messages) != 1 {
			t.Errorf("messages %q at one that was started anew", messages)
		}

		// Somebody of that name at another host, or another port, does not get them.
		m.know("w3", a3)
		n3 := w.start(t, ca.Open(t, trust.RoleWorker, "w3"), a3)
		for host, port := range map[string]int{a9: 7946, a3: 7947} {
			other, err := w.dial(t.Context(), addrOf(t, host), a1, n3.creds.ClientConfig(nil))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { other.NetConn().Close() })
			m.write(other, append(appendPackets(nil, port), appendFrame(nil, acked(t, 0))...))
		}
		m.to([]byte("\x08for w3"), "w3", a3)
		if messages, _ := n3.seen(); len(messages) != 1 {
			t.Errorf("messages %q of one", messages)
		}
		if lost := lostPackets(t, m); len(lost) > 0 {
			t.Errorf("packets were lost: %v", lost)
		}
	})
}

// A connection over which both send is replaced, too, and nothing is lost by it.
func TestConnectionsOfBothAge(t *testing.T) {
	meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
		const times = 4 * int(linkAge/linkIdle)
		for range times {
			n.to([]byte("\x08there"), "m1", a1)
			synctest.Wait()
			m.to([]byte("\x08back"), "w1", a2)
			time.Sleep(linkIdle / 2)
		}
		there, _ := m.seen()
		back, _ := n.seen()
		if len(there) != times || len(back) != times {
			t.Errorf("%d and %d of %d arrived", len(there), len(back), times)
		}
		if lost := []map[string]int{lostPackets(t, m), lostPackets(t, n)}; len(lost[0])+len(lost[1]) > 0 {
			t.Errorf("packets were lost: %v", lost)
		}
		if in := m.roster.inUse() + n.roster.inUse(); in > 2 {
			t.Errorf("%d connections", in)
		}
	})
}

// A connection in use is replaced now and then, so that certificates are looked at.
func TestConnectionsAge(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, _ *wire, m, n *node) {
		old := m.raw(ca.Open(t, trust.RoleWorker, "w9"))
		m.write(old, appendPackets(nil, 7946))
		old.SetWriteDeadline(time.Time{})
		began, lived := time.Now(), make(chan time.Duration, 1)
		go func() {
			ended(old)
			lived <- time.Since(began)
		}()
		written := make(chan struct{})
		go func() {
			defer close(written)
			for range 4 * int(inboundAge/linkIdle) {
				time.Sleep(linkIdle / 2)
				if _, err := old.Write(appendFrame(nil, acked(t, 0))); err != nil {
					break
				}
			}
		}()
		first := map[string]bool{}
		for range 2 * int(inboundAge/linkIdle) {
			time.Sleep(linkIdle / 2)
			n.to(acked(t, 0), "m1", a1)
			synctest.Wait()
			m.roster.mu.Lock()
			for id, member := range m.roster.members {
				if id.Name == "w1" && len(member.packets) > 0 {
					first[fmt.Sprintf("%p", member.packets[0])] = true
				}
			}
			m.roster.mu.Unlock()
		}
		if len(first) < 2 {
			t.Errorf("%d connections in %v", len(first), inboundAge)
		}
		if took := <-lived; took < inboundAge-linkIdle || took > inboundAge+time.Second {
			t.Errorf("a connection of somebody who does not replace it lived for %v; want %v", took, inboundAge)
		}
		<-written
		if lost := lostPackets(t, n); len(lost) > 0 {
			t.Errorf("packets were lost: %v", lost)
		}
	})
}

// A packet to a node goes to that node or nowhere.
func TestPacketsToOthers(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, w *wire, m, n *node) {
		c := w.start(t, ca.Open(t, trust.RoleWorker, "w2"), a3)
		n.know("w3", a3) // where w2 is
		n.to([]byte("\x08for w3"), "w3", a3)
		n.to([]byte("\x08for w2"), "w2", a3) // of whom n knows nothing
		n.to([]byte("\x08for m1"), "m1", a3) // who is elsewhere
		n.know("gone", "10.0.0.9:1")
		n.to([]byte("\x08for gone"), "gone", "10.0.0.9:1")
		if messages, _ := c.seen(); len(messages) > 0 {
			t.Errorf("w2 got %q", messages)
		}
		if lost := lostPackets(t, n); lost["unknown"] != 2 || lost["wrong_name"] != 1 || lost["failed"] != 1 {
			t.Errorf("lost: %v", lost)
		}
		// Who is connected may be answered before more is known of it.
		c.know("w1", a2)
		c.to([]byte("\x08hello"), "w1", a2)
		n.seen()
		n.to([]byte("\x08for w2"), "w2", a3)
		if messages, _ := c.seen(); !slices.Equal(messages, []string{"w1: for w2"}) {
			t.Errorf("w2 got %q", messages)
		}
		// Wherever it says it is, that is two connections.
		for i := range 10 {
			n.to([]byte("\x08for w2"), "w2", fmt.Sprintf("10.0.9.%d:1", i))
		}
		n.links.mu.Lock()
		if got := len(n.links.all); got > maxLinksPerName {
			t.Errorf("%d connections", got)
		}
		n.links.mu.Unlock()
		for _, a := range []memberlist.Address{{Addr: a1}, {}} {
			if _, err := n.WriteToAddress([]byte{1}, a); err == nil {
				t.Errorf("a packet to %v was taken", a)
			}
		}
		if _, err := n.WriteToAddress(make([]byte, MaxPacket+1), address("m1", a1)); err == nil {
			t.Error("a packet that is too long was taken")
		}
	})
}

// lostPackets returns the packets that were not sent, by reason.
func lostPackets(t *testing.T, n *node) map[string]int {
	t.Helper()
	synctest.Wait()
	lost := make(map[string]int)
	for _, reason := range []string{queueFull, unknown, "wrong_name", "failed", "wrong_role", "expired"} {
		if v := int(testutil.ToFloat64(n.lost.WithLabelValues(reason))); v > 0 {
			lost[reason] = v
		}
	}
	return lost
}

// What does not fit the queue is lost, and so is what waits for somebody who can not
// be reached.
func TestQueueIsBounded(t *testing.T) {
	meshed(t, func(t *testing.T, _ *trusttest.Authority, w *wire, _, n *node) {
		// Somebody who accepts no connection.
		w.mu.Lock()
		w.hosts[a3] = &pipeListener{conns: make(chan net.Conn), down: make(chan struct{})}
		w.mu.Unlock()
		n.know("w2", a3)
		const more = 100
		for range linkQueue + more {
			n.to(make([]byte, MaxPacket), "w2", a3)
		}
		if lost := lostPackets(t, n); lost[queueFull] != more {
			t.Errorf("lost: %v, want %d for the queue", lost, more)
		}
		for i := range 10 {
			name, addr := fmt.Sprint("w", i+10), fmt.Sprintf("10.0.1.%d:1", i)
			w.mu.Lock()
			w.hosts[addr] = w.hosts[a3]
			w.mu.Unlock()
			n.know(name, addr)
			for range linkQueue {
				n.to(make([]byte, MaxPacket), name, addr)
			}
		}
		n.links.mu.Lock()
		if n.links.queued > maxQueued {
			t.Errorf("%d bytes are queued", n.links.queued)
		}
		n.links.mu.Unlock()
		time.Sleep(dialTimeout)
		if lost := lostPackets(t, n); lost["failed"] == 0 || n.links.inUse() != 0 {
			t.Errorf("lost: %v; %d connections", lost, n.links.inUse())
		}
		n.links.mu.Lock()
		if n.links.queued != 0 {
			t.Errorf("%d bytes are still counted", n.links.queued)
		}
		n.links.mu.Unlock()
	})
}

// What is queued when a node leaves is still sent.
func TestShutdownSends(t *testing.T) {
	meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
		for i := range linkQueue {
			n.to([]byte{userMsg, byte(i)}, "m1", a1)
		}
		n.Shutdown()
		if messages, _ := m.seen(); len(messages) != linkQueue {
			t.Errorf("%d messages arrived", len(messages))
		}
		if _, err := n.WriteToAddress([]byte{1}, address("m1", a1)); err != nil {
			t.Error(err)
		}
		if _, err := n.DialAddressTimeout(address("m1", a1), time.Second); err == nil {
			t.Error("dialled after the end")
		}
	})
}

// An exchange carries a request and its answer, whole.
func TestExchange(t *testing.T) {
	meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
		request, answer := stateOf(t, 1000, bytes.Repeat([]byte("u"), 500_000)), stateOf(t, 2000, []byte("answer"))
		served := make(chan error, 1)
		go func() {
			x := <-m.StreamCh()
			defer x.Close()
			b, err := io.ReadAll(x)
			if err == nil && !bytes.Equal(b, request) {
				err = fmt.Errorf("another request of %d bytes", len(b))
			}
			if err == nil {
				_, err = x.Write(answer)
			}
			served <- err
		}()
		x, err := n.DialAddressTimeout(memberlist.Address{Addr: a1}, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Write(request); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(x)
		if err != nil || !bytes.Equal(b, answer) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		x.Close()
		synctest.Wait()
		if !slices.Equal(n.states, []string{"m1: answer"}) || len(m.states) != 1 {
			t.Errorf("states: %q and %d", n.states, len(m.states))
		}
		if _, err := n.DialAddressTimeout(memberlist.Address{Name: "w7", Addr: a1}, time.Second); trust.ReasonOf(err) != trust.WrongName {
			t.Errorf("m1 passed for w7: %v", err)
		}
		if _, err := x.Write(make([]byte, MaxState+1)); err == nil {
			t.Error("a message that is too long was sent")
		}
	})
}
