package p2p

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// DialFunc opens a connection to a peer. With TLS, check says whether the identity
// at the other end may be talked to; its error ends the attempt.
type DialFunc func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error)

// dialPlain connects without TLS, hence to anybody.
func dialPlain(ctx context.Context, addr string, _ func(trust.Identity) error) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// wantPeer returns a check that an identity is a node's that may be in the fleet, and,
// unless name is empty, that one's.
func wantPeer(name string) func(trust.Identity) error {
	return trust.Want(name, trust.VerbFetch.Who()...)
}

// Target is a peer to be asked for something.
type Target struct {
	// Name is the peer's name. With TLS nobody else is asked. Empty: not known,
	// and any peer will do.
	Name string
	Addr string // host:port where it speaks the peer protocol
}

// host is what a target is called towards net/http, which keeps connections by it: one
// that was made to a peer must not be used for another that comes to live at
// its address.
func (t Target) host() string {
	if t.Name == "" {
		return t.Addr
	}
	sum := sha256.Sum256([]byte(t.Name + "\x00" + t.Addr))
	return hex.EncodeToString(sum[:16])
}

// targetKey is the key of the Target in a request's context. All requests to one host have
// the same.
type targetKey struct{}

func withTarget(ctx context.Context, t Target) context.Context {
	return context.WithValue(ctx, targetKey{}, t)
}

// target connects to the Target in ctx.
func (dial DialFunc) target(ctx context.Context) (net.Conn, error) {
	t := ctx.Value(targetKey{}).(Target)
	c, err := dial(ctx, t.Addr, wantPeer(t.Name))
	if err != nil {
		return nil, &dialError{err}
	}
	return c, nil
}

// dialError is what befell the connecting to a peer, who sent nothing yet that could
// be wrong.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (t Target) String() string {
	if t.Name == "" {
		return t.Addr
	}
	return t.Name + " at " + t.Addr
}
