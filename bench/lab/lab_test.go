package lab

import (
	"context"
	"errors"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newNetwork(t *testing.T) *Network {
	t.Helper()
	n, err := New()
	if errors.Is(err, ErrNotPermitted) {
		t.Skip(err)
	}
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	return n
}

func addHost(t *testing.T, n *Network, colo string, l Link) *Host {
	t.Helper()
	h, err := n.AddHost(colo, l)
	check(t, err)
	return h
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// transfer sends bytes from one host to another for a while and returns how many
// bytes of frames arrived a second, once the buckets are empty.
func transfer(t *testing.T, from, to *Host, d time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d+10*time.Second)
	defer cancel()
	ln, err := to.Listen(ctx, "tcp", net.JoinHostPort(to.Addr().String(), "0"))
	check(t, err)
	defer ln.Close()
	sending := make(chan error, 1)
	go func() {
		conn, err := from.Dial(ctx, "tcp", ln.Addr().String())
		if err != nil {
			sending <- err
			return
		}
		defer conn.Close()
		block := make([]byte, 256<<10)
		for err == nil {
			_, err = conn.Write(block)
		}
		sending <- nil // it ends when the other end closes
	}()
	conn, err := ln.Accept()
	check(t, err)
	// The frames are counted, not what is read: when a lost one is repeated, all
	// that came after it is read at once.
	var before Traffic
	var begun time.Time
	block := make([]byte, 256<<10)
	for warm := time.Now().Add(300 * time.Millisecond); begun.IsZero() || time.Since(begun) < d; {
		_, err := conn.Read(block)
		check(t, err)
		if begun.IsZero() && time.Now().After(warm) {
			before, err = to.Traffic()
			check(t, err)
			begun = time.Now()
		}
	}
	after, err := to.Traffic()
	check(t, err)
	took := time.Since(begun)
	check(t, conn.Close())
	check(t, <-sending)
	return float64(after.Received-before.Received) / took.Seconds()
}

const mbit = 1e6 / 8

// A link holds the rate it was given, whichever end limits it.
func TestRateIsHeld(t *testing.T) {
	for _, c := range []struct {
		name             string
		up, down, colo   Rate
		want             float64 // of frames
		sameColo, toCore bool
	}{
		{name: "uplink 100mbit", up: 100 * mbit, down: 1000 * mbit, want: 100 * mbit, sameColo: true},
		{name: "downlink 100mbit", up: 1000 * mbit, down: 100 * mbit, want: 100 * mbit, sameColo: true},
		{name: "both 10mbit", up: 10 * mbit, down: 10 * mbit, want: 10 * mbit, sameColo: true},
		{name: "both 1gbit", up: 1000 * mbit, down: 1000 * mbit, want: 1000 * mbit, sameColo: true},
		{name: "colo 20mbit", up: 100 * mbit, down: 100 * mbit, colo: 20 * mbit, want: 20 * mbit},
		{name: "from the core", up: 100 * mbit, down: 100 * mbit, colo: 20 * mbit, want: 20 * mbit, toCore: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNetwork(t)
			check(t, n.AddColo("a", c.colo))
			check(t, n.AddColo("b", c.colo))
			link := Link{Up: c.up, Down: c.down}
			to := addHost(t, n, "a", link)
			place := "b"
			switch {
			case c.sameColo:
				place = "a"
			case c.toCore:
				place = ""
			}
			from := addHost(t, n, place, link)
			// A machine that is busy with other work carries less at times, and never more.
			for try := 1; ; try++ {
				got := transfer(t, from, to, 3*time.Second)
				off := got/c.want - 1
				if math.Abs(off) <= 0.03 {
					break
				}
				if off > 0 || try == 3 {
					t.Fatalf("carried %.3g bytes/s of frames, %+.1f%% off %s", got, 100*off, Rate(c.want))
				}
			}
			sent, err := from.Traffic()
			check(t, err)
			received, err := to.Traffic()
			check(t, err)
			if ratio := float64(received.Received) / float64(sent.Sent); ratio < 0.9 || ratio > 1.01 { // the rest waits in the queue or was dropped
				t.Errorf("%d bytes sent, %d received", sent.Sent, received.Received)
			}
		})
	}
}

// Nothing that a network consists of is seen by the namespace of the caller, and
// the hosts see nothing of it.
func TestIsolation(t *testing.T) {
	interfaces := func() string {
		entries, err := os.ReadDir("/proc/self/net/dev_snmp6")
		if err != nil {
			t.Skip(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	before := interfaces()
	n := newNetwork(t)
	h := addHost(t, n, "", Link{})
	if now := interfaces(); now != before {
		t.Errorf("interfaces were %s and are %s", before, now)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer ln.Close()
	if conn, err := h.Dial(t.Context(), "tcp", ln.Addr().String()); err == nil {
		conn.Close()
		t.Error("a host reached the loopback of the machine")
	}
	inside, err := h.Listen(t.Context(), "tcp", net.JoinHostPort(h.Addr().String(), "0"))
	check(t, err)
	reached := make(chan bool)
	go func() {
		conn, err := inside.Accept()
		if err == nil {
			conn.Close()
		}
		reached <- err == nil
	}()
	// Whatever else the machine may reach at this address, it is not our host.
	if conn, err := net.DialTimeout("tcp", inside.Addr().String(), time.Second); err == nil {
		conn.Close()
	}
	check(t, inside.Close())
	if <-reached {
		t.Error("the machine reached a host")
	}
}

// A hundred hosts all know each other.
func TestManyHosts(t *testing.T) {
	n := newNetwork(t)
	var hosts []*Host
	for range 100 {
		hosts = append(hosts, addHost(t, n, "", Link{}))
	}
	for i := 1; i < len(hosts); i++ {
		ln, err := hosts[i].Listen(t.Context(), "tcp", net.JoinHostPort(hosts[i].Addr().String(), "0"))
		check(t, err)
		conn, err := hosts[i-1].Dial(t.Context(), "tcp", ln.Addr().String())
		check(t, err)
		check(t, errors.Join(conn.Close(), ln.Close()))
	}
}

// Both ends of a connection send by the lab's algorithm, whatever the machine's is.
func TestCongestion(t *testing.T) {
	n := newNetwork(t)
	from, to := addHost(t, n, "", Link{}), addHost(t, n, "", Link{})
	ln, err := to.Listen(t.Context(), "tcp", net.JoinHostPort(to.Addr().String(), "0"))
	check(t, err)
	defer ln.Close()
	dialled, err := from.Dial(t.Context(), "tcp", ln.Addr().String())
	check(t, err)
	defer dialled.Close()
	accepted, err := ln.Accept()
	check(t, err)
	defer accepted.Close()
	for _, conn := range []net.Conn{dialled, accepted} {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		check(t, err)
		var used string
		var optErr error
		check(t, raw.Control(func(fd uintptr) {
			used, optErr = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		}))
		check(t, optErr)
		if used = strings.TrimRight(used, "\x00"); used != Congestion {
			t.Errorf("%s sends by %s", conn.LocalAddr(), used)
		}
	}
}
