package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
)

// vanishedAfter is how long a peer may acknowledge nothing, or take nothing.
const vanishedAfter = 30 * time.Second

// maxHeader bounds a request's head, in bytes: a key of 511 bytes takes 1.5 KiB. Parsed,
// a head of many short lines takes up to twenty times as much.
const maxHeader = 8 << 10

// listeners are the node's open sockets, but for gossip's without TLS, which is UDP
// too. Whoever serves one takes it; what nobody took is closed by the cleanup.
type listeners struct {
	gossip, swarm, peer, http, resp, respUnix net.Listener

	addresses Addrs
}

// mayAny admits who may do one of the verbs; at each request its own is asked for.
func mayAny(verbs ...trust.Verb) func(trust.Identity) error {
	var roles []trust.Role
	for _, v := range verbs {
		roles = append(roles, v.Who()...)
	}
	return trust.Want("", roles...)
}

// listen opens the node's sockets. Whoever connects goes through e.
func listen(o *Options, e *edge.Edge, stop *cleanup) (*listeners, error) {
	ls := &listeners{addresses: Addrs{PID: os.Getpid()}}
	stop.addClose("close listeners", ls.close)
	gossipAddr := ""
	if o.tls() {
		gossipAddr = o.GossipAddr
	}
	for _, l := range []struct {
		flag, addr string
		to         *net.Listener
		bound      *string
		edge       edge.ListenOptions
	}{
		{"--gossip-addr", gossipAddr, &ls.gossip, &ls.addresses.Gossip,
			edge.ListenOptions{Name: "gossip", Admit: mayAny(trust.VerbGossip)}},
		{"--swarm-addr", o.SwarmAddr, &ls.swarm, &ls.addresses.Swarm,
			edge.ListenOptions{Name: "swarm", Admit: mayAny(trust.VerbFetch)}},
		{"--peer-addr", o.PeerAddr, &ls.peer, &ls.addresses.Peer,
			edge.ListenOptions{Name: "peer", Admit: mayAny(trust.VerbFetch)}},
		{"--http-addr", o.HTTPAddr, &ls.http, &ls.addresses.HTTP,
			o.Clients.listenOptions(listenerHTTP)},
		{"--resp-addr", o.RESPAddr, &ls.resp, &ls.addresses.RESP,
			o.Clients.listenOptions(listenerRESP)},
	} {
		if l.addr == "" {
			continue
		}
		var config net.ListenConfig
		if l.to == &ls.peer { // elsewhere a client may pause as long as it likes
			config.Control = giveUpVanished
		}
		ln, err := config.Listen(context.Background(), "tcp", l.addr)
		if err != nil {
			return nil, listenError(l.flag, l.addr, err)
		}
		*l.to, *l.bound = e.Listen(ln, l.edge), ln.Addr().String()
	}
	if o.RESPUnix != "" {
		ln, err := listenUnix(o.RESPUnix, o.RESPUnixMode)
		if err != nil {
			return nil, listenError("--resp-unix", o.RESPUnix, err)
		}
		ls.respUnix, ls.addresses.RESPUnix = e.Listen(ln, o.Clients.listenOptions(listenerRESPUnix)), o.RESPUnix
	}
	return ls, nil
}

// listenError names the flag to change.
func listenError(flag, addr string, err error) error {
	// memberlist gives the error's text only.
	if errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
		return fmt.Errorf("%s %s is taken by another process: stop it, or choose another address with %s", flag, addr, flag)
	}
	return fmt.Errorf("listen on %s %s: %w", flag, addr, err)
}

// take hands a listener over to its server.
func (ls *listeners) take(l *net.Listener) net.Listener {
	ln := *l
	*l = nil
	return ln
}

// takeRESP hands over those RESP is served on.
func (ls *listeners) takeRESP() []net.Listener {
	var lns []net.Listener
	for _, l := range []*net.Listener{&ls.resp, &ls.respUnix} {
		if *l != nil {
			lns = append(lns, ls.take(l))
		}
	}
	return lns
}

func (ls *listeners) close() error {
	var errs []error
	for _, l := range []net.Listener{ls.gossip, ls.swarm, ls.peer, ls.http, ls.resp, ls.respUnix} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// serveHTTP serves h on ln until stop is called, which lets requests finish
// until its context ends, and then cuts them off.
func serveHTTP(ln net.Listener, h http.Handler, a *access, logger *slog.Logger) (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	srv := newServer(ctx, h, logger)
	watch := &connWatch{tell: func(c caller, err error) { a.tell(listenerHTTP, c, err) }}
	watch.on(srv)
	served := serve(srv, ln)
	return func(grace context.Context) error {
		defer cancel()
		if err := srv.Shutdown(grace); err != nil {
			cancel()
			srv.Close()
		}
		return <-served
	}
}

// servePeers serves the peer protocol on ln. Log streams never end by
// themselves: stop ends them first.
func servePeers(ln net.Listener, s *p2p.Server, logger *slog.Logger) (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	srv := newServer(ctx, nil, logger)
	s.Attach(srv)
	served := serve(srv, ln)
	return func(grace context.Context) error {
		cancel()
		if err := srv.Shutdown(grace); err != nil {
			srv.Close()
		}
		return <-served
	}
}

func newServer(ctx context.Context, h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// serve returns what Serve returned, once it does; the end by Shutdown is no error.
func serve(srv *http.Server, ln net.Listener) <-chan error {
	served := make(chan error, 1)
	go func() {
		err := srv.Serve(ln)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		served <- err
	}()
	return served
}

// life is the node's background work.
type life struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newLife() *life {
	l := &life{}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

func (l *life) run(work func(context.Context)) { l.wg.Go(func() { work(l.ctx) }) }

func (l *life) stop(context.Context) error {
	l.cancel()
	l.wg.Wait()
	return nil
}
