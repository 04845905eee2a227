package lab

import (
	"context"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// nobody is a hardware address that no host has. Frames to it cross the bridges, and
// nobody takes them.
var nobody = net.HardwareAddr{0x02, 0x71, 0, 0, 0xff, 0xff}

// Cut has everything lost, without a word, that h sends to another host from now on,
// on connections that there are, too. The way back is another cut.
func (h *Host) Cut(to *Host) error { return h.neighbour(to, nobody) }

// Mend undoes Cut. It may be called without one.
func (h *Host) Mend(to *Host) error { return h.neighbour(to, to.mac()) }

func (h *Host) neighbour(to *Host, mac net.HardwareAddr) error {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	if h.network.sw == nil {
		return errClosed
	}
	return h.know(to, mac)
}

// Squeeze lets h send only r from now on, frame by frame, so that each waits until those
// before it have left: what is not lost comes late. 0 gives the link back its rate.
func (h *Host) Squeeze(r Rate) error {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	if h.network.sw == nil {
		return errClosed
	}
	list, err := h.space.nl.QdiscList(h.uplink)
	if err != nil {
		return fmt.Errorf("squeeze %s: %w", h.addr, err)
	}
	for _, q := range list { // the kernel does not replace a queue by one of another kind
		if q.Attrs().Parent == netlink.HANDLE_ROOT && q.Attrs().Handle != 0 {
			if err := h.space.nl.QdiscDel(q); err != nil {
				return fmt.Errorf("squeeze %s: %w", h.addr, err)
			}
		}
	}
	if r == 0 {
		return shape(h.space.nl, h.uplink, h.up)
	}
	const frame = 1600 // with headers
	err = h.space.nl.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: h.uplink.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)},
		Rate:       uint64(r), Limit: uint32(r) + 64*frame, Buffer: netlink.Xmittime(uint64(r), frame),
	})
	if err != nil {
		return fmt.Errorf("squeeze %s to %s: %w", h.addr, r, err)
	}
	return nil
}

// ListenPacket listens for UDP at addr as the host would.
func (h *Host) ListenPacket(ctx context.Context, addr string) (conn net.PacketConn, err error) {
	err = within(h.space.ns, func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", h.addr, err)
	}
	return conn, nil
}
