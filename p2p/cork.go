package p2p

import (
	"net"
)

// corker is what is below a TLS connection, if it can collect what TLS writes: each
// record of 16 KiB is a system call otherwise.
type corker interface {
	Cork()
	Uncork() error
}

// corkOf returns what is below c. nil: it is not TLS, or can not.
func corkOf(c net.Conn) corker {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		k, _ := outer.NetConn().(corker)
		return k
	}
	return nil
}

// together has what write writes collected.
func together(k corker, write func() error) error {
	if k == nil {
		return write()
	}
	k.Cork()
	err := write()
	if flushed := k.Uncork(); err == nil {
		err = flushed
	}
	return err
}
