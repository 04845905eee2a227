package torture

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reset breaks a process's TCP connections with an address off, as a firewall or a peer
// that crashed does: the other end gets a RST. It returns how many there were. To
// disconnect a socket (connect(2) with AF_UNSPEC) does it, and that works on a copy of the
// descriptor, too (pidfd_getfd(2), which takes CAP_SYS_PTRACE).
func reset(pid int, with netip.Addr) (n int, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err != nil || !strings.HasPrefix(target, "socket:") {
			continue // closed since, or something else
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			return n, err
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return n, fmt.Errorf("a socket of process %d: %w", pid, err)
		}
		if peerOf(fd) == with && disconnect(fd) == nil {
			n++
		}
		if err := unix.Close(fd); err != nil {
			return n, err
		}
	}
	return n, nil
}

// peerOf returns whom a TCP socket is connected to, if it is one.
func peerOf(fd int) netip.Addr {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return netip.Addr{}
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return netip.Addr{}
	}
	switch peer := peer.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(peer.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(peer.Addr).Unmap()
	}
	return netip.Addr{}
}

func disconnect(fd int) error {
	var nobody [16]byte // AF_UNSPEC, which package unix has no address for
	_, _, errno := syscall.Syscall(syscall.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nobody)), uintptr(len(nobody)))
	if errno != 0 {
		return errno
	}
	return nil
}

// connections returns how many TCP connections a process's network namespace has that are
// established with an address (proc_net_tcp(5)).
func connections(pid int, with netip.Addr) (n int, err error) {
	a := with.As4()
	v4 := fmt.Sprintf("%02X%02X%02X%02X", a[3], a[2], a[1], a[0])
	for _, table := range []struct{ name, addr string }{
		{"tcp", v4}, {"tcp6", "0000000000000000FFFF0000" + v4},
	} {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/" + table.name)
		if err != nil {
			return n, err
		}
		for line := range strings.Lines(string(text)) {
			// sl local_address rem_address st …
			f := strings.Fields(line)
			if len(f) > 3 && strings.HasPrefix(f[2], table.addr+":") && f[3] == "01" {
				n++
			}
		}
	}
	return n, nil
}
