package edge

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// maxHandshake bounds what a client sends in a handshake, in bytes: its greeting and a
// chain of certificates have room.
const maxHandshake = 16 << 10

var errLongHandshake = errors.New("the handshake is longer than 16 KiB")

// seat is a connection's place among those that are counted. Its owner sets leave
// before it hands the connection over.
type seat struct {
	leave func()
	once  sync.Once
}

func (s *seat) free() {
	s.once.Do(func() {
		if s.leave != nil {
			s.leave()
		}
	})
}

// tcpSocket is an accepted TCP connection without TLS: all that net.TCPConn can do,
// sendfile and socket options among it, and counted.
type tcpSocket struct {
	*net.TCPConn
	seat
	*waker
}

func (s *tcpSocket) Read(p []byte) (int, error) {
	s.reading()
	return s.TCPConn.Read(p)
}

func (s *tcpSocket) Close() error {
	err := s.TCPConn.Close()
	s.free()
	return err
}

// socket is any other accepted connection: what is below TLS, say.
type socket struct {
	net.Conn
	seat
	handshake *handshake // nil: done, or there is none
	cork      cork
	*waker
	tls bool // what is read are TLS records
}

func (s *socket) Read(p []byte) (int, error) {
	if h := s.handshake; h != nil {
		if h.left == 0 {
			return 0, errLongHandshake
		}
		n, err := s.Conn.Read(p[:min(len(p), h.left)])
		h.left -= n
		s.received(p[:n])
		return n, err
	}
	s.reading()
	n, err := s.Conn.Read(p)
	if s.tls {
		s.received(p[:n])
	}
	return n, err
}

// Write ends the computing for a handshake: its first write is the server's flight.
func (s *socket) Write(p []byte) (int, error) {
	if s.handshake != nil {
		s.handshake.computed()
	}
	return s.cork.write(s.Conn, p)
}

func (s *socket) Close() error {
	err := s.Conn.Close()
	s.free()
	return err
}

// SyscallConn makes socket options reachable.
func (s *socket) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := s.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// How long and how much is read from somebody who is refused. If something that was
// sent is left unread, the kernel takes back what was last sent, which says why.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 10
)

// linger lets the other end read why it is refused.
func (s *socket) linger() {
	half, ok := s.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	s.SetDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, s.Conn, lingerBytes)
}

// hostOf returns an address without its port.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.Network()
	}
	return host
}
