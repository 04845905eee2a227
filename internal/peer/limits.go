package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/txlog"
)

// ClientLimits bound what clients of HTTP and RESP may take of a node. Zero values
// stand for the defaults.
type ClientLimits struct {
	// Conns is how many connections each of the two listeners has at most, and
	// ConnsPerIdentity how many of them one certificate's identity may have.
	Conns, ConnsPerIdentity int
	// Rate is how many requests an identity may send in a second, or NoLimit.
	Rate int
	// Memory is what requests that are being received, and answers that are being
	// taken, hold together, in bytes. One identity may have three quarters of it.
	Memory int64
}

// NoLimit as ClientLimits.Rate lets everybody send as fast as they can.
const NoLimit = -1

// Defaults of ClientLimits.
const (
	DefaultClientConns            = 1024
	DefaultClientConnsPerIdentity = 256
	DefaultClientRate             = 50_000
	DefaultClientMemory           = 32 << 20
)

// DefaultRESPUnixMode is the mode of the RESP socket's file.
const DefaultRESPUnixMode fs.FileMode = 0o660

const (
	// maxRequest bounds the keys and values of one request, or of what MULTI gathers, in
	// bytes: a value of the greatest length has company.
	maxRequest = txlog.MaxValue + 2<<20
	// minMemory has room for one such request, while it grows, of one identity.
	minMemory = 32 << 20
	// maxReports bounds how many reports are under way at once, and a share of it.
	maxReports, reportShare = 4, 2
	// maxScans bounds how many scans hold a read transaction at once.
	maxScans, scanShare = 64, 16
	// placePatience is how long a report or a scan waits for a place.
	placePatience = 10 * time.Second
)

func (l ClientLimits) withDefaults() ClientLimits {
	fill := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	fill(&l.Conns, DefaultClientConns)
	fill(&l.ConnsPerIdentity, DefaultClientConnsPerIdentity)
	fill(&l.Rate, DefaultClientRate)
	if l.Memory == 0 {
		l.Memory = DefaultClientMemory
	}
	return l
}

func (l ClientLimits) validate() error {
	switch {
	case l.Conns < 1:
		return fmt.Errorf("--client-conns %d: want at least 1", l.Conns)
	case l.ConnsPerIdentity < 1:
		return fmt.Errorf("--client-conns-each %d: want at least 1", l.ConnsPerIdentity)
	case l.Rate < NoLimit:
		return fmt.Errorf("--client-rate %d is negative: 0 is no limit", l.Rate)
	case l.Memory < minMemory:
		return fmt.Errorf("--client-memory is %d bytes: a request of the greatest size takes %d", l.Memory, minMemory)
	}
	return nil
}

// listenOptions are those of a listener for clients. Who has a good certificate may
// connect; what it may do is decided request by request.
func (l ClientLimits) listenOptions(name string) edge.ListenOptions {
	return edge.ListenOptions{Name: name, MaxConns: l.Conns, MaxPerIdentity: l.ConnsPerIdentity}
}

// checkMode refuses modes that are none of a socket's file.
func checkMode(mode fs.FileMode) error {
	if mode&^fs.ModePerm != 0 || mode == 0 {
		return errors.New("want the permissions of a file, such as 0660")
	}
	return nil
}
