package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// MaxHosts is how many hosts a network holds at most.
const MaxHosts = 250

// Network is a set of hosts that reach each other, and nothing else. Its methods
// may be called concurrently.
type Network struct {
	starter *starter

	mu    sync.Mutex // guards what follows
	sw    *space     // the switch; nil once closed
	core  netlink.Link
	colos map[string]*colo
	hosts []*Host
}

// Traffic counts bytes of frames, headers included.
type Traffic struct {
	Sent, Received int64
}

// colo is a bridge, and its two-way link to the core.
type colo struct {
	bridge       netlink.Link
	inner, outer netlink.Link // the link's ends: outer sends into the colo, inner out of it
}

// space is a namespace and a way to configure it.
type space struct {
	ns netns.NsHandle
	nl *netlink.Handle
}

func newSpace() (*space, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), ns.Close())
	}
	return &space{ns, nl}, nil
}

func (s *space) close() error {
	s.nl.Close()
	return s.ns.Close()
}

// up returns the named link, which is up from then on.
func (s *space) up(name string) (netlink.Link, error) {
	link, err := s.nl.LinkByName(name)
	if err == nil {
		err = s.nl.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("set link %s up: %w", name, err)
	}
	return link, nil
}

func (s *space) bridge(name string) (netlink.Link, error) {
	flood := false // of multicast: with snooping, groups without a querier go quiet
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &flood}); err != nil {
		return nil, fmt.Errorf("add bridge %s: %w", name, err)
	}
	return s.up(name)
}

// Permitted returns nil if this process may make networks, ErrNotPermitted if
// not.
func Permitted() error {
	n, err := New()
	if err != nil {
		return err
	}
	return n.Close()
}

// New makes a network without hosts. It returns ErrNotPermitted if this process
// may not.
func New() (_ *Network, err error) {
	n := &Network{colos: map[string]*colo{}}
	defer func() {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: %w", ErrNotPermitted, err)
		}
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.sw, err = newSpace(); err != nil {
		return n, err
	}
	if n.core, err = n.sw.bridge("core"); err != nil {
		return n, err
	}
	n.starter, err = newStarter()
	return n, err
}

// AddColo adds a place whose hosts reach each other directly, and others over one
// link of rate r each way.
func (n *Network) AddColo(name string, r Rate) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sw == nil {
		return errClosed
	}
	if n.colos[name] != nil || name == "" {
		return fmt.Errorf("add colo %q: there is one of that name", name)
	}
	c, err := n.newColo(fmt.Sprintf("c%d", len(n.colos)), r)
	if err != nil {
		return fmt.Errorf("add colo %s: %w", name, err)
	}
	n.colos[name] = c
	return nil
}

func (n *Network) newColo(prefix string, r Rate) (*colo, error) {
	bridge, err := n.sw.bridge(prefix)
	if err != nil {
		return nil, err
	}
	c := &colo{bridge: bridge}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = prefix + "-in"
	if err := n.sw.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: prefix + "-out"}); err != nil {
		return nil, fmt.Errorf("link it to the core: %w", err)
	}
	if c.inner, err = n.port(prefix+"-in", bridge, r); err != nil {
		return nil, err
	}
	c.outer, err = n.port(prefix+"-out", n.core, r)
	return c, err
}

// port makes the named link of the switch a port of bridge that sends at rate r.
func (n *Network) port(name string, bridge netlink.Link, r Rate) (netlink.Link, error) {
	link, err := n.sw.up(name)
	if err != nil {
		return nil, err
	}
	if err := n.sw.nl.LinkSetMaster(link, bridge); err != nil {
		return nil, fmt.Errorf("put %s on %s: %w", name, bridge.Attrs().Name, err)
	}
	return link, shape(n.sw.nl, link, r)
}

// ColoTraffic returns what a colo's link to the others has carried: out of the
// colo and into it.
func (n *Network) ColoTraffic(name string) (t Traffic, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sw == nil {
		return t, errClosed
	}
	c := n.colos[name]
	if c == nil {
		return t, fmt.Errorf("there is no colo %q", name)
	}
	if t.Sent, err = sent(n.sw.nl, c.inner); err != nil {
		return t, err
	}
	t.Received, err = sent(n.sw.nl, c.outer)
	return t, err
}

// Link is how fast a host sends and receives.
type Link struct {
	Up, Down Rate
}

// Host is a machine of a network. Its methods may be called concurrently.
type Host struct {
	network *Network
	space   *space
	addr    netip.Addr
	uplink  netlink.Link // in the host
	up      Rate         // of it
	port    netlink.Link // in the switch
}

// AddHost adds a host in a colo, or, if colo is empty, at the core.
func (n *Network) AddHost(colo string, l Link) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sw == nil {
		return nil, errClosed
	}
	bridge := n.core
	if colo != "" {
		c := n.colos[colo]
		if c == nil {
			return nil, fmt.Errorf("add host: there is no colo %q", colo)
		}
		bridge = c.bridge
	}
	if len(n.hosts) >= MaxHosts {
		return nil, fmt.Errorf("add host: a network holds at most %d", MaxHosts)
	}
	number := byte(len(n.hosts) + 1)
	h := &Host{network: n, addr: netip.AddrFrom4([4]byte{10, 171, 0, number}), up: l.Up}
	var err error
	if h.space, err = newSpace(); err != nil {
		return nil, err
	}
	n.hosts = append(n.hosts, h)
	if err := n.plug(h, bridge, l); err != nil {
		return nil, fmt.Errorf("add host %s: %w", h.addr, err)
	}
	return h, nil
}

// plug connects h to bridge.
func (n *Network) plug(h *Host, bridge netlink.Link, l Link) error {
	if _, err := h.space.up("lo"); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("p%d", h.number())
	err := n.sw.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0",
		PeerHardwareAddr: h.mac(), PeerNamespace: netlink.NsFd(h.space.ns)})
	if err != nil {
		return fmt.Errorf("add link: %w", err)
	}
	if h.port, err = n.port(attrs.Name, bridge, l.Down); err != nil {
		return err
	}
	if h.uplink, err = h.space.up("eth0"); err != nil {
		return err
	}
	if err := shape(h.space.nl, h.uplink, l.Up); err != nil {
		return err
	}
	ip := &net.IPNet{IP: h.addr.AsSlice(), Mask: net.CIDRMask(24, 32)}
	if err := h.space.nl.AddrAdd(h.uplink, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	// The algorithm is the route's: a namespace may take only those as its own that the machine
	// allows to everybody.
	ip.IP = ip.IP.Mask(ip.Mask)
	route := &netlink.Route{LinkIndex: h.uplink.Attrs().Index, Dst: ip, Src: h.addr.AsSlice(),
		Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_KERNEL, Congctl: Congestion}
	if err := h.space.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("have TCP use %s (does the kernel have it?): %w", Congestion, err)
	}
	for _, other := range n.hosts {
		if other != h {
			if err := errors.Join(h.know(other, other.mac()), other.know(h, h.mac())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *Host) number() int { return int(h.addr.As4()[3]) }

func (h *Host) mac() net.HardwareAddr { return net.HardwareAddr{0x02, 0x71, 0, 0, 0, h.addr.As4()[3]} }

// know tells h the other's hardware address: the kernel's table of such, which
// all namespaces share, is too small to have a hundred hosts ask for them.
func (h *Host) know(other *Host, mac net.HardwareAddr) error {
	err := h.space.nl.NeighSet(&netlink.Neigh{LinkIndex: h.uplink.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: other.addr.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("tell %s where %s is: %w", h.addr, other.addr, err)
	}
	return nil
}

// Addr returns the host's address in the network.
func (h *Host) Addr() netip.Addr { return h.addr }

// Start starts cmd as a process of the host. It is killed when this process ends.
func (h *Host) Start(cmd *exec.Cmd) error { return h.network.starter.start(h.space.ns, cmd) }

// StartTree starts cmd like Start, and everything that it starts in turn ends with
// it: it is the first process of a process namespace.
func (h *Host) StartTree(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
	return h.Start(cmd)
}

// Dial connects to addr as the host would. Its own loopback addresses cost no
// bandwidth of its link.
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = within(h.space.ns, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens at addr as the host would.
func (h *Host) Listen(ctx context.Context, network, addr string) (ln net.Listener, err error) {
	err = within(h.space.ns, func() (err error) {
		ln, err = new(net.ListenConfig).Listen(ctx, network, addr)
		return err
	})
	return ln, err
}

// Traffic returns what the host's link has carried.
func (h *Host) Traffic() (t Traffic, err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	if h.network.sw == nil {
		return t, errClosed
	}
	if t.Sent, err = sent(h.space.nl, h.uplink); err != nil {
		return t, err
	}
	t.Received, err = sent(h.network.sw.nl, h.port)
	return t, err
}

// Close takes the network away, and kills the processes that were started in it
// and still run. It may be called twice.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sw == nil {
		return nil
	}
	if n.starter != nil {
		n.starter.close()
	}
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.space.close())
	}
	errs = append(errs, n.sw.close())
	n.hosts, n.sw = nil, nil
	return errors.Join(errs...)
}
