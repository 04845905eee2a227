//go:build !linux

package peer

import (
	"io/fs"
	"net"
	"syscall"
)

// listenNarrow listens on a new socket file that only its owner may use. The umask is the
// process's: what else is made meanwhile is for its owner only, too.
func listenNarrow(path string, _ fs.FileMode) (net.Listener, error) {
	defer syscall.Umask(syscall.Umask(0o077))
	return net.Listen("unix", path)
}
