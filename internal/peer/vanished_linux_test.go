package peer

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/internal/edge"
)

// TestVanishedPeersAreGivenUp: accepted connections inherit the limit. What
// the kernel makes of it is not shown here, because a loopback interface loses
// no peer.
func TestVanishedClientsAreGivenUp(t *testing.T) {
	var stop cleanup
	ls, err := listen(&Options{PeerAddr: "127.0.0.1:0"}, edge.New(edge.Options{}), &stop)
	if err != nil {
		t.Fatal(err)
	}
	defer ls.close()
	client, err := net.Dial("tcp", ls.peer.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ls.peer.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if ctlErr := raw.Control(func(fd uintptr) {
		got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}); ctlErr != nil || err != nil {
		t.Fatal(ctlErr, err)
	}
	if got != int(vanishedAfter.Milliseconds()) {
		t.Errorf("unacknowledged data is waited for %d ms, want %v", got, vanishedAfter)
	}
}
