package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-sockaddr"
	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// Reasons for which something is dropped, beside those of a handshake.
const (
	Malformed   trust.Reason = "malformed"
	FalseSource trust.Reason = "false_source" // a ping that claims another source
	Flood       trust.Reason = "flood"        // more than a member may send
	TooMany     trust.Reason = "too_many"     // connections or exchanges at a time
	Slow        trust.Reason = "slow"         // what began did not end in time
	Unknown     trust.Reason = "no_record"    // a member that did not become known
)

// MaxBad is how many bad items end an exchange.
const MaxBad = 20

// Dial connects to an address, with TLS, and returns the connection if check is
// content with who is there.
type Dial func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error)

// Options configure a Transport. All but Logger are required.
type Options struct {
	// Listener accepts connections of others, with TLS, their handshakes done or not.
	// The transport closes it.
	Listener net.Listener
	Dial     Dial
	// Where says whether a node is known to be at an address, and if not, whether it
	// is known at all. It is called with locks held and calls nobody back. Whoever
	// becomes known is to be told to Introduce.
	Where func(name, addr string) (there, known bool)
	// Left says whether a node told itself that it leaves. It calls nobody back.
	Left func(name string) bool
	// Message takes a user message of a packet, and says whether it was bad: nobody
	// sends such who is honest.
	Message func(from trust.Identity, b []byte) (bad bool)
	// State takes the user's part of a state, and says how many of its items were bad.
	// From MaxBad on it need not look further.
	State func(from trust.Identity, b []byte) (bad int)
	// Dropped is told of what was refused, and of whom: an identity, or an address.
	// reason is a metric's label.
	Dropped func(reason trust.Reason, who string, err error)
	// Logger gets lines at debug level.
	Logger *slog.Logger
}

// Transport implements memberlist.NodeAwareTransport.
type Transport struct {
	o       Options
	packets chan *memberlist.Packet
	streams chan net.Conn
	roster  roster
	waiting waiting
	links   links
	held    atomic.Int64 // bytes of states that are being received or handled
	lost    *prometheus.CounterVec

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// New returns a transport that does nothing before Start.
func New(o Options) *Transport {
	t := &Transport{
		o:       o,
		packets: make(chan *memberlist.Packet),
		streams: make(chan net.Conn),
		roster:  roster{members: make(map[trust.Identity]*member), names: make(map[string]int)},
		waiting: waiting{all: make(map[memberlist.Address]waiter)},
		links:   links{all: make(map[memberlist.Address]*link)},
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_gossip_packets_lost_total",
			Help: "Packets that were not sent, with TLS: queue_full, or why the node could not be reached (failed, wrong_name, expired, …).",
		}, []string{"reason"}),
	}
	if t.o.Logger == nil {
		t.o.Logger = slog.New(slog.DiscardHandler)
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// Start begins to accept connections.
func (t *Transport) Start() {
	t.wg.Add(1)
	go t.accept()
}

// Collectors returns the transport's metrics.
func (t *Transport) Collectors() []prometheus.Collector {
	connections := func(direction string, count func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "qs_gossip_connections",
			Help:        "Connections of the gossip with TLS: in, those that others made; out, nodes that packets are sent to, over connections of either side.",
			ConstLabels: prometheus.Labels{"direction": direction},
		}, func() float64 { return float64(count()) })
	}
	return []prometheus.Collector{t.lost, connections("in", t.roster.inUse), connections("out", t.links.inUse)}
}

// FinalAdvertiseAddr returns the listener's address, with a private address of this
// machine if it listens on all of them.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	addr, ok := t.o.Listener.Addr().(*net.TCPAddr)
	if !ok {
		return nil, 0, fmt.Errorf("the gossip listens on %v, which is no TCP address", t.o.Listener.Addr())
	}
	ip := addr.IP
	if ip.IsUnspecified() {
		text, err := sockaddr.GetPrivateIP()
		if err != nil {
			return nil, 0, fmt.Errorf("find an address to advertise: %w", err)
		}
		if ip = net.ParseIP(text); ip == nil {
			return nil, 0, errors.New("this machine has no private address to advertise")
		}
	}
	if ip4 := ip.To4(); ip4 != nil {
		ip = ip4
	}
	return slices.Clone(ip), addr.Port, nil
}

// port returns the gossip's own, as others know it.
func (t *Transport) port() int {
	if addr, ok := t.o.Listener.Addr().(*net.TCPAddr); ok {
		return addr.Port
	}
	return 0 // FinalAdvertiseAddr says so
}

// PacketCh returns the packets that arrive, one message each.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns the exchanges that others begin, their requests received.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// WriteTo is not used: a packet is for somebody.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress queues a packet for a node. That it can not be reached is no error.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	switch {
	case a.Name == "":
		return time.Time{}, fmt.Errorf("a packet to %s names no node", a.Addr)
	case len(b) > MaxPacket:
		return time.Time{}, fmt.Errorf("a packet of %d bytes to %s; at most %d are allowed", len(b), a.Name, MaxPacket)
	}
	t.send(a, b)
	return time.Now(), nil
}

// DialTimeout begins an exchange with whatever member is at addr.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout begins an exchange with a node, or with whatever member is at
// the address if that names none.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, id, err := t.dial(ctx, a)
	if err != nil {
		return nil, err
	}
	return t.newExchange(conn, id), nil
}

// dial connects to a member.
func (t *Transport) dial(ctx context.Context, a memberlist.Address) (net.Conn, trust.Identity, error) {
	conn, err := t.o.Dial(ctx, a.Addr, trust.Want(a.Name, trust.VerbGossip.Who()...))
	if err != nil {
		return nil, trust.Identity{}, err
	}
	id, err := t.identify(conn)
	if err != nil {
		conn.Close()
		return nil, trust.Identity{}, err
	}
	return conn, id, nil
}

// identify returns who is at the other end, if that may gossip.
func (t *Transport) identify(conn net.Conn) (trust.Identity, error) {
	id, ok := trust.PeerOf(conn)
	if !ok {
		return trust.Identity{}, &trust.RefusedError{Reason: trust.NoCertificate, Err: errors.New("the connection does not say who is there")}
	}
	return id, trust.Want("", trust.VerbGossip.Who()...)(id)
}

// Shutdown sends what is queued for connections that are there, for a moment at
// most, then closes everything and waits. It may be called twice.
func (t *Transport) Shutdown() error {
	if t.ctx.Err() == nil {
		t.links.flush(flushTimeout)
	}
	t.links.mu.Lock() // no link is opened after this
	t.cancel()
	t.links.mu.Unlock()
	err := t.o.Listener.Close()
	t.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *Transport) dropped(who string, err error) { t.o.Dropped(trust.ReasonOf(err), who, err) }
