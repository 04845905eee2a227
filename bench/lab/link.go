package lab

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// Rate is how fast a link carries frames, in bytes per second, counted from the
// Ethernet header on and without preamble, checksum and gap, as tbf counts. 0 is
// as fast as the machine can.
type Rate int64

// String returns the rate in bits per second, as tc writes it.
func (r Rate) String() string {
	bits := int64(r) * 8
	for _, u := range []struct {
		size int64
		name string
	}{{1e9, "gbit"}, {1e6, "mbit"}, {1e3, "kbit"}} {
		if bits >= u.size {
			return fmt.Sprintf("%.4g%s", float64(bits)/float64(u.size), u.name)
		}
	}
	if bits == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("%dbit", bits)
}

const (
	// wholePacket is the longest packet that TCP hands to a link before it is
	// cut into frames: 64 KiB, and the headers that its 46 frames will have,
	// which tbf counts too. A bucket that is smaller has the kernel cut every
	// packet in software, which costs several times the processor time.
	wholePacket = 64<<10 + 46*80
	// jitter is how late the kernel may be to refill a bucket; what would have
	// passed meanwhile must fit, or a fast link stays below its rate.
	jitter = 2 * time.Millisecond
	// queueing is how long a packet may wait at a link before it is dropped: a
	// switch port's buffer.
	queueing = 50 * time.Millisecond
)

// Burst returns the size of the bucket of a link of rate r, in bytes. It is what
// an idle link lets pass at once, beyond its rate.
func (r Rate) Burst() int {
	return max(wholePacket, int(float64(r)*jitter.Seconds()))
}

// queue returns how many bytes may wait at a link of rate r: at least a few
// whole packets.
func (r Rate) queue() int {
	return max(4*wholePacket, int(float64(r)*queueing.Seconds())) + r.Burst()
}

// shape limits what link sends to r. Without a limit it gets a plain queue, so
// that every link's frames are counted in the same way.
func shape(h *netlink.Handle, link netlink.Link, r Rate) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)}
	var q netlink.Qdisc = &netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "pfifo"}
	if r > 0 {
		q = &netlink.Tbf{QdiscAttrs: attrs, Rate: uint64(r), Limit: uint32(r.queue()),
			Buffer: netlink.Xmittime(uint64(r), uint32(r.Burst()))}
	}
	if err := h.QdiscReplace(q); err != nil {
		return fmt.Errorf("shape %s to %s: %w", link.Attrs().Name, r, err)
	}
	return nil
}

// sent returns how many bytes of frames link has sent. Unlike the interface's
// own counters this counts the headers of every frame that a whole packet is
// cut into.
func sent(h *netlink.Handle, link netlink.Link) (int64, error) {
	list, err := h.QdiscList(link)
	if err != nil {
		return 0, fmt.Errorf("read counters of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range list {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Basic != nil {
			return int64(a.Statistics.Basic.Bytes), nil
		}
	}
	return 0, fmt.Errorf("read counters of %s: the kernel gave none", link.Attrs().Name)
}
