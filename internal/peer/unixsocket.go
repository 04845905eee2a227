package peer

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// listenUnix listens on a socket file of the given permissions, in place of one that a
// killed process left behind. At no time are they wider.
func listenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("there is a file of that name that is not a socket: choose another path, or remove it")
	case err == nil:
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			return nil, syscall.EADDRINUSE
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	ln, err := listenNarrow(path, mode)
	if err != nil {
		return nil, err
	}
	// What the umask took away.
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}
