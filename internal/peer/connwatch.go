package peer

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// connWatch finds HTTP connections over which something comes that never is a request:
// net/http closes them without telling anybody.
type connWatch struct {
	tell  func(caller, error)
	conns sync.Map // net.Conn to *pending
}

// pending is true from when bytes of a request have come until it has a handler.
type pending struct{ atomic.Bool }

type pendingKey struct{}

// errNoRequest is told of such connections.
var errNoRequest = &protocolError{"what came is no HTTP request, or did not become one in time"}

// on makes srv watch its connections.
func (w *connWatch) on(srv *http.Server) {
	next := srv.Handler
	srv.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if p, ok := r.Context().Value(pendingKey{}).(*pending); ok {
			p.Store(false)
		}
		next.ServeHTTP(rw, r)
	})
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		p := &pending{}
		w.conns.Store(c, p)
		return context.WithValue(ctx, pendingKey{}, p)
	}
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		p, ok := w.conns.Load(c)
		switch {
		case !ok:
		case state == http.StateActive:
			p.(*pending).Store(true)
		case state == http.StateClosed:
			w.conns.Delete(c)
			if p.(*pending).Load() {
				w.tell(callerOf(c), errNoRequest)
			}
		}
	}
}
