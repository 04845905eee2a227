package peer

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// giveUpVanished makes connections that a listener accepts break when the other
// side acknowledges or takes nothing for vanishedAfter. A machine that lost its power
// says no goodbye, and what is sent to it rarely, as a log stream's heartbeats
// are, fits the socket's buffer: no write fails or blocks until the kernel gives
// up by itself, a quarter of an hour later.
func giveUpVanished(_, _ string, c syscall.RawConn) error {
	var err error
	if ctlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(vanishedAfter.Milliseconds()))
	}); ctlErr != nil {
		return ctlErr
	}
	return err
}
