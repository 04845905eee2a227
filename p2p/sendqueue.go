package p2p

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsent is how much may wait in the kernel to be sent first, in bytes. What has
// been given to the kernel can not be taken back when the receiver got it from
// elsewhere, and is what the next piece, which others may need more, waits for.
const unsent = 64 << 10

// keepShort bounds a connection's queue in the kernel (TCP_NOTSENT_LOWAT). What is
// in flight is not bounded by it, so neither is the rate on a long way.
func keepShort(c net.Conn) {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = outer.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return // not the kernel's
	}
	if raw, err := sc.SyscallConn(); err == nil {
		// Where it is not supported, nothing is lost but time.
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) })
	}
}
