package mesh

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// Only members may connect. What they are refused for is counted, and the others
// do not notice.
func TestStrangers(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, w *wire, m, n *node) {
		open := func(f trust.Files) *trust.Credentials {
			c, err := trust.Open(trust.Options{Files: f})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		expiring := open(ca.Issue(t, t.TempDir(), trusttest.Identity(trust.RoleWorker, "w8"), time.Now().Add(time.Minute)))
		elsewhere := trusttest.Identity(trust.RoleWorker, "w7")
		elsewhere.Domain = "other.example"
		time.Sleep(2 * time.Minute)
		for name, test := range map[string]struct {
			creds *trust.Credentials
			want  trust.Reason
		}{
			"other authority": {trusttest.New(t).Open(t, trust.RoleWorker, "w9"), trust.UnknownAuthority},
			"expired":         {expiring, trust.Expired},
			"other domain":    {open(ca.Issue(t, t.TempDir(), elsewhere, time.Now().Add(time.Hour))), trust.WrongDomain},
			"reader":          {ca.Open(t, trust.RoleClientRead, "c1"), trust.WrongRole},
			"writer":          {ca.Open(t, trust.RoleClientWrite, "c2"), trust.WrongRole},
			"operator":        {ca.Open(t, trust.RoleOperator, "o1"), trust.WrongRole},
		} {
			before := m.drops(test.want)
			config := test.creds.ClientConfig(nil)
			config.VerifyConnection = nil // it connects to whomever
			conn, err := w.dial(t.Context(), addrOf(t, a9), a1, config)
			if err == nil {
				conn.SetDeadline(time.Now().Add(time.Hour))
				conn.Write(append(appendPackets(nil, 7946), appendFrame(nil, []byte("\x08record"))...))
				if took := ended(conn); took > helloTimeout {
					t.Errorf("%s: was served for %v", name, took)
				}
				conn.NetConn().Close()
			}
			if got := m.drops(test.want); got != before+1 {
				t.Errorf("%s: %d were dropped as %s, want %d", name, got, test.want, before+1)
			}
			// Nor does a member talk to one of these.
			if _, err := m.WriteToAddress(acked(t, 0), address(test.creds.Identity().Name, a3)); err != nil {
				t.Error(err)
			}
		}
		near, far := net.Pipe()
		go func() { w.hosts[a1].conns <- far }()
		near.SetDeadline(time.Now().Add(time.Minute))
		near.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		io.ReadAll(near)
		near.Close()
		if m.drops(trust.NotTLS) != 1 {
			t.Error("plain text was not counted")
		}
		n.to([]byte("\x08still"), "m1", a1)
		if messages, _ := m.seen(); len(messages) != 1 {
			t.Errorf("messages %q", messages)
		}
	})
}

// A listener that is no member's is not spoken to.
func TestStrangeListeners(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, w *wire, m, _ *node) {
		for i, test := range []struct {
			creds *trust.Credentials
			name  string
			want  trust.Reason
		}{
			{trusttest.New(t).Open(t, trust.RoleWorker, "w2"), "w2", trust.UnknownAuthority},
			{ca.Open(t, trust.RoleOperator, "w3"), "w3", trust.WrongRole},
			{ca.Open(t, trust.RoleWorker, "w5"), "w4", trust.WrongName},
			{ca.Open(t, trust.RoleClientRead, "c1"), "", trust.WrongRole},
		} {
			addr := fmt.Sprintf("10.0.3.%d:7946", i)
			w.start(t, test.creds, addr)
			if _, err := m.DialAddressTimeout(address(test.name, addr), time.Minute); trust.ReasonOf(err) != test.want {
				t.Errorf("%s: %v; want %s", test.name, err, test.want)
			}
		}
	})
}

// Messages that are not what they say are dropped, and the rest of their packet is not.
func TestBadMessages(t *testing.T) {
	for name, test := range map[string]struct {
		packet []byte
		want   trust.Reason
		rest   int // messages of the packet that arrive
	}{
		"ping of another":          {message(t, pingMsg, ping{SourceNode: "m1"}), FalseSource, 0},
		"indirect ping of another": {message(t, indirectPingMsg, indirectPing{SourceNode: "w2"}), FalseSource, 0},
		"in a compound":            {compound(acked(t, 1), message(t, pingMsg, ping{SourceNode: "m1"}), acked(t, 2)), FalseSource, 2},
		"behind a checksum":        {checksummed(message(t, pingMsg, ping{SourceNode: "m1"})), FalseSource, 0},
		"junk":                     {[]byte("GET / HTTP/1.1"), Malformed, 0},
		"junk in a compound":       {compound(acked(t, 1), []byte("junk")), Malformed, 1},
		"a compound cut short":     {compound(acked(t, 1), acked(t, 1))[:7], Malformed, 0},
	} {
		t.Run(name, func(t *testing.T) {
			meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
				n.to(test.packet, "m1", a1)
				n.to(acked(t, 9), "m1", a1)
				if _, packets := m.seen(); len(packets) != test.rest+1 || m.drops(test.want) != 1 {
					t.Errorf("%d packets arrived and %d were dropped as %s; want %d and 1", len(packets), m.drops(test.want), test.want, test.rest+1)
				}
			})
		})
	}
}

// Who speaks another protocol, or nothing, is disconnected in time.
func TestBadConnections(t *testing.T) {
	hour := bytes.Repeat([]byte{kindPackets}, 60)
	for name, test := range map[string]struct {
		say   [][]byte // a second apart
		want  trust.Reason
		least time.Duration
		most  time.Duration
	}{
		"silence":               {nil, Slow, helloTimeout, helloTimeout},
		"another protocol":      {[][]byte{[]byte("GET / HTTP/1.1\r\n\r\n")}, Malformed, 0, 0},
		"a frame too long":      {[][]byte{append(appendPackets(nil, 7946), 0xff, 0xff, 0xff, 0xff)}, Malformed, 0, 0},
		"an empty frame":        {[][]byte{append(appendPackets(nil, 7946), 0, 0, 0, 0)}, Malformed, 0, 0},
		"half a packet":         {[][]byte{append(appendPackets(nil, 7946), appendFrame(nil, hour)[:20]...)}, Slow, packetTimeout, packetTimeout},
		"a packet by the byte":  {bytewise(append(appendPackets(nil, 7946), appendFrame(nil, hour)...)), Slow, 0, packetTimeout + 3*time.Second},
		"no port":               {[][]byte{{kindPackets}}, Slow, helloTimeout, helloTimeout},
		"no packet":             {[][]byte{appendPackets(nil, 7946)}, "", inboundIdle, inboundIdle},
		"no request":            {[][]byte{{kindStream}}, Slow, requestTimeout, requestTimeout},
		"a request by the byte": {bytewise(append([]byte{kindStream}, appendFrame(nil, hour)...)), Slow, 0, requestTimeout},
		"a request too long":    {[][]byte{{kindStream, 0, 0, 0, 2}}, Malformed, 0, 0},
		"a request of a lie":    {[][]byte{append([]byte{kindStream}, appendFrame(nil, message(t, pingMsg, ping{SourceNode: "m1"}))...)}, FalseSource, 0, 0},
		"a user message":        {[][]byte{append([]byte{kindStream}, appendFrame(nil, []byte("\x08user"))...)}, Malformed, 0, 0},
		"a compressed request":  {[][]byte{append([]byte{kindStream}, appendFrame(nil, []byte("\x09lzw"))...)}, Malformed, 0, 0},
		"a state of a million": {[][]byte{append([]byte{kindStream}, appendFrame(nil,
			message(t, pushPullMsg, stateHeader{Nodes: 1 << 20}))...)}, Malformed, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			meshed(t, func(t *testing.T, ca *trusttest.Authority, _ *wire, m, n *node) {
				conn := m.raw(ca.Open(t, trust.RoleWorker, "w9"))
				begin := time.Now()
				over := make(chan time.Duration, 1)
				go func() {
					ended(conn)
					over <- time.Since(begin)
				}()
				for _, b := range test.say {
					conn.SetWriteDeadline(time.Now().Add(time.Minute))
					if _, err := conn.Write(b); err != nil {
						break
					}
					if len(test.say) > 1 {
						time.Sleep(time.Second)
					}
				}
				took := <-over
				if took < test.least || took > test.most+time.Second {
					t.Errorf("it ended after %v, want %v to %v", took, test.least, test.most)
				}
				if test.want != "" && m.drops(test.want) != 1 {
					t.Errorf("it was not counted as %s: %v", test.want, m.dropped)
				}
				n.to([]byte("\x08still"), "m1", a1)
				if messages, _ := m.seen(); len(messages) != 1 {
					t.Errorf("messages %q", messages)
				}
			})
		})
	}
}

func bytewise(b []byte) (parts [][]byte) {
	for i := range b {
		parts = append(parts, b[i:i+1])
	}
	return parts
}

// One that sends more than a member may is heard as much as one may be, and the
// others as ever.
func TestFlood(t *testing.T) {
	for name, test := range map[string]struct {
		packet []byte
		bad    bool
		most   int // messages in the burst and 20 seconds
	}{
		"messages":     {[]byte("\x08m"), false, messageBurst + 20*messageRate},
		"compounds":    {compound(repeat([]byte("\x08m"), 255)...), false, messageBurst + 20*messageRate},
		"bytes":        {append([]byte{userMsg}, make([]byte, MaxPacket-1)...), false, (byteBurst + 20*byteRate) / MaxPacket},
		"pings":        {message(t, pingMsg, ping{SourceNode: "w9"}), false, pingBurst + 20*pingRate},
		"suspicions":   {message(t, suspectMsg, accusation{1, "w1", "w2"}), false, suspectBurst + 20*suspectRate},
		"bad messages": {[]byte("\x08m"), true, (messageBurst+20*messageRate)/(badCost+1) + 1},
	} {
		t.Run(name, func(t *testing.T) {
			meshed(t, func(t *testing.T, ca *trusttest.Authority, _ *wire, m, n *node) {
				w9 := ca.Open(t, trust.RoleWorker, "w9")
				m.bad = test.bad
				frame := appendFrame(nil, test.packet)
				stop := time.Now().Add(20 * time.Second)
				var flooders sync.WaitGroup
				defer flooders.Wait()
				for range maxPacketConns {
					flooders.Go(func() {
						for time.Now().Before(stop) {
							conn := m.raw(w9)
							conn.SetWriteDeadline(stop)
							conn.Write(appendPackets(nil, 7946))
							for {
								if _, err := conn.Write(frame); err != nil {
									break
								}
								time.Sleep(time.Millisecond)
							}
							conn.NetConn().Close()
						}
					})
				}
				// Meanwhile, a member of good behaviour.
				for range 20 {
					n.to(acked(t, 0), "m1", a1)
					time.Sleep(time.Second)
				}
				messages, packets := m.seen()
				heard := 0
				for _, p := range packets {
					if p == string(acked(t, 0)) {
						heard++
					} else {
						messages = append(messages, p)
					}
				}
				if heard != 20 {
					t.Errorf("%d of 20 packets of another member arrived", heard)
				}
				if len(messages) > test.most || len(messages) < test.most/10 {
					t.Errorf("%d messages were taken, want at most %d", len(messages), test.most)
				}
				if m.drops(Flood) == 0 {
					t.Error("no flood was noticed")
				}
				t.Logf("%d messages were taken, %d times it was too much", len(messages), m.drops(Flood))
			})
		})
	}
}

func repeat(b []byte, n int) [][]byte {
	parts := make([][]byte, n)
	for i := range parts {
		parts[i] = b
	}
	return parts
}

// One member can take only its own places.
func TestTooManyConnections(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, _ *wire, m, n *node) {
		w9 := ca.Open(t, trust.RoleWorker, "w9")
		first := m.raw(w9)
		m.write(first, appendPackets(nil, 7946))
		over := make(chan time.Duration, 1)
		go func() { over <- ended(first) }()
		for range maxPacketConns {
			m.write(m.raw(w9), appendPackets(nil, 7946))
			synctest.Wait()
		}
		if took := <-over; took > 0 {
			t.Errorf("the oldest connection was kept for %v", took)
		}
		silent := 0
		for range maxConns + 8 {
			conn := m.raw(w9)
			go ended(conn)
			silent++
		}
		synctest.Wait()
		if in := m.roster.inUse(); in != maxConns {
			t.Errorf("%d connections of one member, want %d", in, maxConns)
		}
		if got := m.drops(TooMany); got != silent+maxPacketConns-maxConns {
			t.Errorf("%d were one too many", got)
		}
		time.Sleep(helloTimeout)
		n.to([]byte("\x08still"), "m1", a1)
		if messages, _ := m.seen(); len(messages) != 1 {
			t.Errorf("messages %q", messages)
		}

		// Exchanges: so many at a time. Connections: so many a second.
		time.Sleep(time.Minute)
		for range maxStreams + 1 {
			m.write(m.raw(w9), []byte{kindStream})
		}
		synctest.Wait()
		m.roster.mu.Lock()
		if got := m.roster.members[w9.Identity()].streams; got != maxStreams {
			t.Errorf("%d exchanges, want %d", got, maxStreams)
		}
		m.roster.mu.Unlock()
		time.Sleep(time.Minute)
		flooded := m.drops(Flood)
		for range 3 * connBurst {
			go ended(m.raw(w9))
		}
		if got := m.drops(Flood) - flooded; got != 2*connBurst {
			t.Errorf("%d of %d connections were too many", got, 3*connBurst)
		}
	})
}

// Exchanges use so much memory and no more.
func TestExchangesAreBounded(t *testing.T) {
	meshed(t, func(t *testing.T, ca *trusttest.Authority, _ *wire, m, _ *node) {
		half := make([]byte, MaxState/2)
		for i := range 5 {
			w := ca.Open(t, trust.RoleWorker, fmt.Sprint("w", i+10))
			for range 2 {
				conn := m.raw(w)
				conn.SetWriteDeadline(time.Now().Add(time.Hour))
				go func() {
					conn.Write(append([]byte{kindStream}, appendFrame(nil, append(half, half...))[:len(half)+4]...))
					ended(conn)
				}()
			}
		}
		synctest.Wait()
		if held := m.held.Load(); held > maxHeld || held < maxHeld/2 {
			t.Errorf("%d bytes are held, want up to %d", held, maxHeld)
		}
		if m.drops(TooMany) == 0 {
			t.Error("all were let in")
		}
		time.Sleep(requestTimeout)
		synctest.Wait()
		if held := m.held.Load(); held != 0 {
			t.Errorf("%d bytes are held by nobody", held)
		}
	})
}

// Who is said to be alive is believed once it is known, and for so long only.
func TestWaiting(t *testing.T) {
	meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
		live := func(name string, port uint16, incarnation uint32) []byte {
			return message(t, aliveMsg, alive{Node: name, Addr: []byte{10, 0, 0, 3}, Port: port, Incarnation: incarnation})
		}
		n.to(live("w2", 7946, 1), "m1", a1)
		n.to(live("w2", 7946, 2), "m1", a1)
		n.to(live("w2", 9, 3), "m1", a1) // where it is not
		if _, packets := m.seen(); len(packets) > 0 {
			t.Fatalf("%q was believed", packets)
		}
		m.Introduce("w2", a2)
		m.know("w2", a3)
		m.Introduce("w2", a3)
		m.Introduce("w2", a3)
		n.to(live("w2", 7946, 4), "m1", a1)
		if _, packets := m.seen(); !slices.Equal(packets, []string{string(live("w2", 7946, 2)), string(live("w2", 7946, 4))}) {
			t.Errorf("%q were believed", packets)
		}
		time.Sleep(waitingTime)
		n.to(live("ghost", 1, 1), "m1", a1)
		if got := m.drops(Unknown); got != 1 {
			t.Errorf("%d were given up, want 1", got)
		}
		for i := range uint16(maxWaiting + 10) {
			n.to(live("ghost", i+2, 1), "m1", a1)
			time.Sleep(time.Second / messageRate)
		}
		if got := m.drops(Unknown); got != 12 || len(m.waiting.all) != maxWaiting || len(m.waiting.order) != maxWaiting {
			t.Errorf("%d were given up, and %d wait", got, len(m.waiting.all))
		}
		n.to([]byte{aliveMsg, 0xc1}, "m1", a1)
		if m.drops(Malformed) != 1 {
			t.Error("junk was taken")
		}
	})
}

// The answer of an exchange is looked at like a request.
func TestBadAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		answer []byte
		want   trust.Reason
	}{
		"a state of a million": {message(t, pushPullMsg, stateHeader{Nodes: 1 << 20}), Malformed},
		"a ping":               {message(t, pingMsg, ping{SourceNode: "m1"}), Malformed},
		"a large error":        {append([]byte{errorMsg}, make([]byte, MaxPacket)...), Malformed},
		"compressed":           {[]byte("\x09lzw"), Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			meshed(t, func(t *testing.T, _ *trusttest.Authority, _ *wire, m, n *node) {
				go func() {
					x := <-m.StreamCh()
					io.ReadAll(x)
					x.Write(test.answer)
					x.Close()
				}()
				x, err := n.DialAddressTimeout(address("m1", a1), time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer x.Close()
				if _, err := x.Write(stateOf(t, 1, nil)); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(x); err == nil || n.drops(test.want) != 1 {
					t.Errorf("%d bytes, %v; dropped %v", len(b), err, n.dropped)
				}
			})
		})
	}
}
