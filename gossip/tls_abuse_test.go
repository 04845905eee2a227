package gossip_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// Types of memberlist's messages.
const (
	pingMsg     = 0
	suspectMsg  = 3
	aliveMsg    = 4
	pushPullMsg = 6
	userMsg     = 8
)

// encoded is a message of memberlist's.
func encoded(t testing.TB, kind byte, parts ...any) []byte {
	t.Helper()
	b := bytes.NewBuffer([]byte{kind})
	enc := codec.NewEncoder(b, &codec.MsgpackHandle{})
	for _, p := range parts {
		if raw, ok := p.([]byte); ok {
			b.Write(raw)
		} else if err := enc.Encode(p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// fields are a message's, by name.
type fields map[string]any

// member is what announces one of memberlist's, in a message or, as Name, in a state.
func member(name string, port int, incarnation uint32) fields {
	return fields{
		"Node": name, "Name": name, "Addr": []byte{127, 0, 0, 1}, "Port": port, "Incarnation": incarnation, "Vsn": []byte{1, 5, 2, 0, 0, 0},
	}
}

func alive(t testing.TB, name string, port int, incarnation uint32) []byte {
	return encoded(t, aliveMsg, member(name, port, incarnation))
}

// insider has a certificate and writes what it likes.
type insider struct {
	*testing.T
	creds *trust.Credentials
	conn  *tls.Conn // for packets
}

func frame(b []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// hello is what a connection for packets begins with: the second part is a port.
const hello = "P" + "\x0a\x1f"

// intrude connects to a node.
func intrude(t *testing.T, c *trust.Credentials, n *secured) *insider {
	t.Helper()
	in := &insider{T: t, creds: c}
	in.conn = in.dial(n)
	in.write(in.conn, []byte(hello))
	return in
}

func (in *insider) dial(n *secured) *tls.Conn {
	in.Helper()
	conn, err := tls.Dial("tcp", n.Addr().String(), in.creds.ClientConfig(nil))
	if err != nil {
		in.Fatal(err)
	}
	in.Cleanup(func() { conn.Close() })
	return conn
}

func (in *insider) write(conn *tls.Conn, b []byte) {
	in.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(b); err != nil {
		in.Fatal(err)
	}
}

// packet sends one message.
func (in *insider) packet(b []byte) { in.Helper(); in.write(in.conn, frame(b)) }

// exchange sends the state of a push-pull and waits for the answer.
func (in *insider) exchange(n *secured, user []byte, nodes ...fields) []byte {
	in.Helper()
	conn := in.dial(n)
	defer conn.Close()
	parts := []any{fields{"Nodes": len(nodes), "UserStateLen": len(user), "Join": false}}
	for _, n := range nodes {
		parts = append(parts, n)
	}
	in.write(conn, append([]byte("S"), frame(encoded(in.T, pushPullMsg, append(parts, user)...))...))
	b, err := io.ReadAll(conn)
	if err != nil {
		in.Logf("exchange: %v", err)
	}
	return b
}

func seal(t testing.TB, c *trust.Credentials, f gossip.Facts, addr string, incarnation uint64) *gossip.Sealed {
	t.Helper()
	s, err := gossip.Seal(c, f, addr, incarnation)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// factsOf returns what a certificate says.
func factsOf(c *trust.Credentials) gossip.Facts {
	id := c.Identity()
	return gossip.Facts{Name: id.Name, Role: gossip.Role(id.Role), Colo: id.Colo}
}

// later is an incarnation that is newer than that of any node that runs.
func later() uint64 { return uint64(time.Now().Add(time.Hour).UnixNano()) }

// A record counts only if the one whom it is about signed it, and if it says of
// that one what the certificate says: on whatever way it came, from whomever.
func TestForgedRecords(t *testing.T) {
	t.Parallel()
	ca, stranger := trusttest.New(t), trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	w := startTLS(t, ca.Open(t, trust.RoleWorker, "w1"), m.Addr().String())
	waitFor(t, "both know each other", func() bool { return together(m, w) })
	m.set(t, "serving", 7)
	waitFor(t, "the update is there", func() bool { return together(m, w) })

	own := ca.Open(t, trust.RoleWorker, "w9")
	in := intrude(t, own, w)
	end := time.Now().Add(4 * time.Second) // in whole seconds
	expiring, err := trust.Open(trust.Options{Files: ca.Issue(t, t.TempDir(), trusttest.Identity(trust.RoleWorker, "w8"), end)})
	if err != nil {
		t.Fatal(err)
	}
	const addr = "127.0.0.1:9"
	addrOfM := m.Addr().String()
	with := func(f gossip.Facts, change func(*gossip.Facts)) gossip.Facts { change(&f); return f }
	altered := func(s *gossip.Sealed) *gossip.Sealed {
		b := s.Record()
		b[len(b)-2] ^= 1 // of the pieces received
		return s
	}
	outdated := seal(t, expiring, factsOf(expiring), addr, later())
	waitFor(t, "a certificate is over", func() bool { return time.Now().After(end) })
	plain := seal(t, own, factsOf(own), addr, later())
	for name, test := range map[string]struct {
		record []byte
		want   trust.Reason
	}{
		"a worker that says manager": {seal(t, own, with(factsOf(own), func(f *gossip.Facts) { f.Role = gossip.Manager }), addr, later()).Bytes(true), trust.WrongRole},
		"another's name":             {seal(t, own, with(factsOf(own), func(f *gossip.Facts) { f.Name = "m1"; f.State = "forged" }), addrOfM, later()).Bytes(true), trust.WrongName},
		"another colo":               {seal(t, own, with(factsOf(own), func(f *gossip.Facts) { f.Colo = "elsewhere" }), addr, later()).Bytes(true), "wrong_colo"},
		"another's certificate":      {seal(t, own, factsOf(m.creds), addrOfM, later()).WithChainOf(seal(t, m.creds, factsOf(m.creds), addrOfM, later())).Bytes(true), trust.BadSignature},
		"its hash":                   {seal(t, own, factsOf(m.creds), addrOfM, later()).WithChainOf(seal(t, m.creds, factsOf(m.creds), addrOfM, later())).Bytes(false), trust.BadSignature},
		"altered on its way":         {altered(seal(t, m.creds, factsOf(m.creds), addrOfM, later())).Bytes(true), trust.BadSignature},
		"unsigned":                   {plain.Record(), "unsigned"},
		"of another authority":       {sealStranger(t, stranger, addr), trust.UnknownAuthority},
		"of an expired certificate":  {outdated.Bytes(true), trust.Expired},
		"of a client":                {sealAs(t, ca, trust.RoleClientWrite, addr), trust.WrongRole},
		"of an operator":             {sealAs(t, ca, trust.RoleOperator, addr), trust.WrongRole},
		"junk":                       {[]byte("\x81 and so on"), "bad_record"},
		"nothing":                    {nil, "bad_record"},
		"cut short":                  {plain.Bytes(true)[:300], "bad_record"},
	} {
		t.Run(name, func(t *testing.T) {
			in.T = t
			before := len(w.refusals(test.want))
			in.packet(append([]byte{userMsg}, test.record...))
			waitFor(t, "the broadcast is refused", func() bool { return len(w.refusals(test.want)) > before })
			in.exchange(w, gossip.State(test.record))
			waitFor(t, "the state is refused", func() bool { return len(w.refusals(test.want)) > before+1 })
			for _, line := range w.refusals(test.want)[before:] {
				if !strings.HasPrefix(line, own.Identity().String()) {
					t.Errorf("another is blamed: %s", line)
				}
			}
			if got := counter(t, w.reg, "qs_gossip_dropped_total", string(test.want)); int(got) != before+2 {
				t.Errorf("%v were counted, want %d", got, before+2)
			}
		})
	}
	for _, n := range []*secured{m, w} {
		if len(n.Members()) != 2 || !together(m, w) {
			t.Errorf("%v", n.Members())
		}
	}
	// And what is signed and told by somebody else counts.
	other := ca.Open(t, trust.RoleManager, "m2")
	in.T = t
	in.packet(append([]byte{userMsg}, seal(t, other, factsOf(other), addr, later()).Bytes(true)...))
	in.packet(alive(t, "m2", 9, 1))
	waitFor(t, "a member that was told of", func() bool {
		m, ok := find(w.Gossip, "m2")
		return ok && m.Role == gossip.Manager && m.Addr == addr
	})
}

func sealAs(t *testing.T, ca *trusttest.Authority, role trust.Role, addr string) []byte {
	c := ca.Open(t, role, "c1")
	return seal(t, c, factsOf(c), addr, later()).Bytes(true)
}

func sealStranger(t *testing.T, ca *trusttest.Authority, addr string) []byte {
	return sealAs(t, ca, trust.RoleManager, addr)
}

// Nobody becomes a member, or moves, because somebody says so.
func TestFalseMembers(t *testing.T) {
	t.Parallel()
	ca := trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	w := startTLS(t, ca.Open(t, trust.RoleWorker, "w1"), m.Addr().String())
	waitFor(t, "both know each other", func() bool { return together(m, w) })
	in := intrude(t, ca.Open(t, trust.RoleWorker, "w9"), w)
	dropped := func() int { return int(counter(t, w.reg, "qs_gossip_dropped_total", "no_record")) }
	for i, m := range []fields{
		member("ghost", 9, 1),
		member("m1", 9, 1<<20), // who is elsewhere
		member("w9", 9, 1),     // itself, without a record
	} {
		in.packet(encoded(t, aliveMsg, m))
		in.exchange(w, gossip.State(), m)
		waitFor(t, "it is refused", func() bool { return dropped() == i+1 })
	}
	for _, n := range []*secured{m, w} {
		if len(n.Members()) != 2 || !together(m, w) {
			t.Errorf("%v", n.Members())
		}
	}
	in.packet(encoded(t, pingMsg, fields{"SeqNo": 1, "Node": "w1", "SourceNode": "m1", "SourceAddr": []byte{127, 0, 0, 1}, "SourcePort": 9}))
	waitFor(t, "a ping in another's name is refused", func() bool { return len(w.refusals("false_source")) == 1 })
}

// Nobody fails, or leaves, because somebody says so.
func TestFalseDeaths(t *testing.T) {
	t.Parallel()
	ca := trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	w := startTLS(t, ca.Open(t, trust.RoleWorker, "w1"), m.Addr().String())
	waitFor(t, "both know each other", func() bool { return together(m, w) })
	in := intrude(t, ca.Open(t, trust.RoleWorker, "w9"), w)
	const deadMsg = 5
	for i := range uint32(20) {
		in.packet(encoded(t, deadMsg, fields{"Node": "m1", "From": "w9", "Incarnation": i}))
		in.packet(encoded(t, deadMsg, fields{"Node": "m1", "From": "m1", "Incarnation": i}))
		in.packet(encoded(t, suspectMsg, fields{"Node": "m1", "From": "w9", "Incarnation": uint32(1<<32 - 1)}))
		left := member("m1", m.Addr().(*net.TCPAddr).Port, i)
		left["State"] = 3
		in.exchange(w, gossip.State(), left)
		for range 10 {
			for _, n := range []*secured{m, w} {
				for _, seen := range n.Members() {
					if seen.Liveness != gossip.Alive {
						t.Fatalf("%s sees %s %v", n.Members()[0].Name, seen.Name, seen.Liveness)
					}
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	m.set(t, "serving", 9)
	waitFor(t, "an update passes", func() bool { return together(m, w) })
	if len(w.refusals("malformed")) != 20 {
		t.Errorf("refused: %v", w.refusals("malformed"))
	}
	if err := m.Leave(5 * time.Second); err != nil {
		t.Error(err)
	}
	waitFor(t, "who says so itself leaves", func() bool { m, _ := find(w.Gossip, "m1"); return m.Liveness == gossip.Left })
}

// A record that comes with the hash of certificates which a node does not know has
// it ask for them.
func TestCertificatesAreAskedFor(t *testing.T) {
	t.Parallel()
	ca := trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	w := startTLS(t, ca.Open(t, trust.RoleWorker, "w1"), m.Addr().String())
	waitFor(t, "both know each other", func() bool { return together(m, w) })
	other := ca.Open(t, trust.RoleWorker, "w2")
	record := seal(t, other, factsOf(other), "127.0.0.1:9", later())
	told := append([]byte{userMsg}, record.Bytes(true)...)
	untold := append([]byte{userMsg}, record.Bytes(false)...)
	intrude(t, ca.Open(t, trust.RoleWorker, "w8"), w).packet(untold)
	waitFor(t, "the certificates are missed", func() bool {
		return counter(t, w.reg, "qs_gossip_records_total", "unknown_chain") > 0
	})
	in := intrude(t, ca.Open(t, trust.RoleWorker, "w9"), m)
	in.packet(told)
	in.packet(alive(t, "w2", 9, 1))
	waitFor(t, "they are there", func() bool {
		m, ok := find(w.Gossip, "w2")
		return ok && m.Role == gossip.Worker
	})
}

// Nodes of both kinds do not mix.
func TestPlainNodes(t *testing.T) {
	t.Parallel()
	ca := trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	plain, err := gossip.Start(gossip.Options{
		Facts: gossip.Facts{Name: "w1", Role: gossip.Worker, Colo: "default"}, Addr: "127.0.0.1:0", Join: []string{m.Addr().String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	w := startTLS(t, ca.Open(t, trust.RoleWorker, "w2"), plain.Addr().String())
	waitFor(t, "the plain one is refused", func() bool { return len(m.refusals(trust.NotTLS)) > 0 })
	waitFor(t, "the plain one is not reached", func() bool { return counter(t, w.reg, "qs_gossip_joins_total", "failed") > 1 })
	if a, b, c := len(m.Members()), len(plain.Members()), len(w.Members()); a+b+c != 3 {
		t.Errorf("%d, %d and %d members", a, b, c)
	}
}

// What a node says of itself must be what its certificate says.
func TestStartTLSRefuses(t *testing.T) {
	ca := trusttest.New(t)
	c := ca.Open(t, trust.RoleWorker, "w1")
	client := ca.Open(t, trust.RoleClientWrite, "c1")
	good := factsOf(c)
	for name, o := range map[string]struct {
		creds *trust.Credentials
		facts gossip.Facts
	}{
		"another name": {c, gossip.Facts{Name: "w2", Role: good.Role, Colo: good.Colo}},
		"another role": {c, gossip.Facts{Name: good.Name, Role: gossip.Manager, Colo: good.Colo}},
		"another colo": {c, gossip.Facts{Name: good.Name, Role: good.Role}},
		"a client":     {client, factsOf(client)},
		"nobody":       {nil, good},
	} {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", c.ServerConfig())
		if err != nil {
			t.Fatal(err)
		}
		g, err := gossip.Start(gossip.Options{Facts: o.facts, TLS: &gossip.TLS{Credentials: o.creds, Listener: ln, Dial: dialer(c)}})
		if err == nil {
			g.Close()
			t.Errorf("%s: started", name)
			continue
		}
		t.Logf("%s: %v", name, err)
		if _, err := ln.Accept(); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("%s: the listener was left open", name)
		}
	}
}

// Certificates are replaced while all runs: nobody is lost, and the new ones are
// what counts once the old ones are over.
func TestRotation(t *testing.T) {
	t.Parallel()
	ca := trusttest.New(t)
	const life = 12 * time.Second
	expires := time.Now().Add(life)
	var nodes []*secured
	var renew []func()
	for i := range 3 {
		id := trusttest.Identity(trust.RoleWorker, fmt.Sprint("w", i))
		dir := t.TempDir()
		c, err := trust.Open(trust.Options{Files: ca.Issue(t, dir, id, expires)})
		if err != nil {
			t.Fatal(err)
		}
		renew = append(renew, func() {
			ca.Issue(t, dir, id, time.Now().Add(time.Hour))
			if err := c.Reload(); err != nil {
				t.Error(err)
			}
		})
		var join []string
		if i > 0 {
			join = []string{nodes[0].Addr().String()}
		}
		nodes = append(nodes, startTLS(t, c, join...))
	}
	waitFor(t, "all know each other", func() bool { return together(nodes...) })
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			for _, n := range nodes {
				if len(n.Members()) != len(nodes) {
					t.Error("somebody was lost")
				}
				for _, m := range n.Members() {
					if m.Liveness != gossip.Alive {
						t.Errorf("%s is %v", m.Name, m.Liveness)
					}
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	for _, r := range renew {
		r()
	}
	for i, n := range nodes {
		n.set(t, "renewed", uint64(i))
	}
	waitFor(t, "updates with new certificates", func() bool { return together(nodes...) })
	waitFor(t, "the old certificates are over", func() bool { return time.Now().After(expires.Add(time.Second)) })
	for i, n := range nodes {
		n.set(t, "later", uint64(i))
	}
	waitFor(t, "updates after that", func() bool { return together(nodes...) })
	close(stop)
	<-watched
	late := startTLS(t, ca.Open(t, trust.RoleManager, "m1"), nodes[1].Addr().String())
	waitFor(t, "one who never saw the old ones joins", func() bool { return together(append(slices.Clone(nodes), late)...) })
	for _, n := range append(nodes, late) {
		if got := counter(t, n.reg, "qs_gossip_dropped_total", ""); got > 0 {
			t.Errorf("%s dropped %v: %v", n.Members()[0].Name, got, n.refused)
		}
	}
}

// A member that floods is cut down, and the others see nothing of it.
func TestFloodingMember(t *testing.T) {
	ca := trusttest.New(t)
	m := startTLS(t, ca.Open(t, trust.RoleManager, "m1"))
	nodes := []*secured{m}
	for i := range 3 {
		nodes = append(nodes, startTLS(t, ca.Open(t, trust.RoleWorker, fmt.Sprint("w", i)), m.Addr().String()))
	}
	waitFor(t, "all know each other", func() bool { return together(nodes...) })
	// An exchange as large as is allowed, and nothing of it good.
	junk := append(gossip.State(), make([]byte, 7<<20)...)
	worst := append([]byte("S"), frame(encoded(t, pushPullMsg, fields{"Nodes": 0, "UserStateLen": len(junk), "Join": true}, junk))...)
	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	own := ca.Open(t, trust.RoleWorker, "w9")
	record := seal(t, own, gossip.Facts{Name: "w9", Role: gossip.Manager, Colo: "default"}, "127.0.0.1:9", later()).Bytes(true)
	floods := [][]byte{
		append([]byte{userMsg}, record...),
		encoded(t, pingMsg, fields{"SeqNo": 1, "Node": "", "SourceNode": "w9", "SourceAddr": []byte{127, 0, 0, 1}, "SourcePort": 9}),
		encoded(t, suspectMsg, fields{"Node": "nobody", "From": "w9", "Incarnation": 9}),
		alive(t, "ghost", 9, 1),
		make([]byte, 32<<10),
	}
	const duration = 4 * time.Second
	stop := time.Now().Add(duration)
	var flooders sync.WaitGroup
	sent := make([]int, len(floods)*len(nodes))
	for i, n := range nodes {
		for j, b := range floods[:4] {
			flooders.Go(func() {
				for time.Now().Before(stop) {
					conn, err := tls.Dial("tcp", n.Addr().String(), own.ClientConfig(nil))
					if err != nil {
						continue
					}
					conn.SetDeadline(stop)
					conn.Write([]byte(hello))
					for {
						if _, err := conn.Write(bytes.Repeat(frame(b), 8)); err != nil {
							break
						}
						sent[i*len(floods)+j] += 8
					}
					conn.Close()
				}
			})
		}
	}
	for _, n := range nodes {
		flooders.Go(func() {
			for time.Now().Before(stop) {
				conn, err := tls.Dial("tcp", n.Addr().String(), own.ClientConfig(nil))
				if err != nil {
					continue
				}
				conn.SetDeadline(stop)
				conn.Write(worst)
				io.Copy(io.Discard, conn)
				conn.Close()
			}
		})
	}
	for time.Now().Before(stop) {
		for _, n := range nodes {
			for _, m := range n.Members() {
				if m.Liveness != gossip.Alive {
					t.Fatalf("%s sees %s %v", n.Members()[0].Name, m.Name, m.Liveness)
				}
			}
			if len(n.Members()) != len(nodes) {
				t.Fatalf("%s has %d members", n.Members()[0].Name, len(n.Members()))
			}
		}
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		if now.HeapInuse > peak.HeapInuse {
			peak = now
		}
		time.Sleep(50 * time.Millisecond)
	}
	begin := time.Now()
	m.set(t, "serving", 42)
	waitFor(t, "an update passes", func() bool { return together(nodes...) })
	t.Logf("an update took %v", time.Since(begin).Round(time.Millisecond))
	flooders.Wait()
	total := 0
	for _, n := range sent {
		total += n
	}
	for _, n := range nodes {
		if len(n.refusals("flood")) == 0 {
			t.Errorf("%s noticed no flood", n.Members()[0].Name)
		}
	}
	extra := float64(peak.HeapInuse) - float64(before.HeapInuse)
	t.Logf("%d messages in %v; %.1f MiB more memory, of four nodes and the flooder", total, duration, extra/(1<<20))
	if extra > float64(len(nodes)*64<<20) {
		t.Error("that is too much memory")
	}
}
