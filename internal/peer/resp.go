package peer

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/internal/heads"
)

const (
	// The names of the RESP listeners in metrics and logs. Each has its own connections,
	// so that a crowd from elsewhere does not keep local clients out.
	listenerRESP     = "resp"
	listenerRESPUnix = "resp-unix"
	// respSpill is how much of pipelined answers is gathered before they are sent.
	respSpill = 8 << 10
	// respKept is how much memory an idle connection keeps for answers.
	respKept = 1 << 10
	// respIdle is how long a connection from another machine may send nothing between
	// commands.
	respIdle = time.Hour
)

// respServer answers the RESP2 protocol.
//
// Its commands are GET MGET EXISTS STRLEN SCAN SET DEL MSET MULTI EXEC DISCARD
// PING ECHO QUIT INFO COMMAND SELECT. SET takes no options: values here do not
// expire, and conditions are not atomic across the log. MULTI queues SET, DEL
// and MSET, which EXEC makes one entry of the log.
//
// SCAN cursors are numbers that this node remembers (see cursors). It reads in
// key order, so keys that are there throughout are returned exactly once.
type respServer struct {
	name, version string
	reads         *reads
	writer        *writer
	access        *access
	cursors       *cursors
	skips         *rate.Limiter // of what is read of refused requests
	logger        *slog.Logger
	commands      *prometheus.CounterVec

	ctx    context.Context // ends when the server stops
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex // guards what follows
	stopped   bool
	listeners []net.Listener
	conns     map[net.Conn]struct{}
}

func newRESPServer(r *reads, w *writer, a *access, o *Options, reg prometheus.Registerer, logger *slog.Logger) *respServer {
	s := &respServer{
		name: o.Name, version: o.Version, reads: r, writer: w, access: a, cursors: newCursors(), logger: logger,
		skips: rate.NewLimiter(skipRate, skipStep),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_resp_commands_total", Help: "RESP commands answered, by command and outcome.",
		}, []string{"command", "outcome"}),
		conns: map[net.Conn]struct{}{},
	}
	reg.MustRegister(s.commands)
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_resp_connections", Help: "Open RESP connections.",
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.conns))
	}))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// serve accepts connections on ln, which it owns, until stop.
func (s *respServer) serve(ln net.Listener) {
	s.mu.Lock()
	s.listeners = append(s.listeners, ln)
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				// Out of descriptors, say: others give theirs back.
				s.logger.Warn("accepting a RESP connection failed", "err", err)
				if !pause(s.ctx, 100*time.Millisecond) {
					return
				}
				continue
			}
			s.admit(conn)
		}
	})
}

func (s *respServer) admit(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		conn.Close()
		return
	}
	s.conns[conn] = struct{}{}
	s.wg.Go(func() {
		c := &respConn{server: s, conn: conn, caller: callerOf(conn)}
		c.lease = s.access.lease(c.caller)
		c.serve()
		conn.Close()
		c.lease.close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	})
}

// stop lets commands that run finish until ctx ends, and closes everything.
func (s *respServer) stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	var errs []error
	for _, ln := range s.listeners {
		errs = append(errs, ln.Close())
	}
	s.listeners = nil
	for conn := range s.conns {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // wakes those that wait for a command
	}
	s.mu.Unlock()

	idle := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
		s.mu.Lock()
		for conn := range s.conns {
			conn.Close()
		}
		s.mu.Unlock()
	}
	s.cancel()
	<-idle
	return errors.Join(errs...)
}

// respConn is one connection. One goroutine uses it.
type respConn struct {
	server  *respServer
	conn    net.Conn
	caller  caller
	lease   lease  // of memory for arguments, a transaction and answers
	out     []byte // answers that were not sent yet
	outHeld int64  // of the lease
	within  bool   // a command: its first byte is there
	pace    pace   // of the command
	tx      *respTx
	quit    bool
	// lastSeq is the entry of the last write here, for INFO.
	lastSeq uint64
}

func (c *respConn) serve() {
	in := &respReader{Reader: bufio.NewReaderSize(c, maxInline), ctx: c.server.ctx, lease: &c.lease, skips: c.server.skips}
	for !c.quit {
		c.within = false
		if _, err := in.Peek(1); err != nil {
			return
		}
		c.within, c.pace = true, pace{}
		c.lease.begin()
		req, err := in.next()
		if err != nil {
			c.tell(err)
			if bad, ok := errors.AsType[*protocolError](err); ok {
				c.out = respFailure(c.out, "ERR "+bad.Error())
				_ = c.flush()
			}
			return
		}
		c.dispatch(req)
		if in.Buffered() == 0 || len(c.out) > respSpill {
			if c.flush() != nil {
				return
			}
		}
	}
	_ = c.flush()
}

// Read reads from the client: within a command no more slowly than pace allows.
func (c *respConn) Read(p []byte) (int, error) {
	if c.within {
		return c.pace.move(c.setReadDeadline, func() (int, error) { return c.conn.Read(p) })
	}
	var deadline time.Time
	if !c.caller.local {
		deadline = time.Now().Add(respIdle)
	}
	if err := c.setReadDeadline(deadline); err != nil {
		return 0, err
	}
	return c.conn.Read(p)
}

// setReadDeadline does not undo the one that stop sets.
func (c *respConn) setReadDeadline(t time.Time) error {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return net.ErrClosed
	}
	return c.conn.SetReadDeadline(t)
}

func (c *respConn) flush() error {
	var p pace
	for rest := c.out; len(rest) > 0; {
		chunk := rest[:min(len(rest), writeChunk)]
		n, err := p.move(c.conn.SetWriteDeadline, func() (int, error) { return c.conn.Write(chunk) })
		if err != nil {
			c.tell(err)
			return err
		}
		rest = rest[n:]
	}
	if cap(c.out) > respKept {
		c.out = nil // connections are many, and most of them idle
	}
	c.out = c.out[:0]
	c.lease.give(c.outHeld)
	c.outHeld = 0
	return nil
}

// dispatch runs a command and appends its answer.
func (c *respConn) dispatch(req *respRequest) {
	name := upper(req.args[0])
	cmd, ok := respCommands[name]
	if !ok {
		name = "other"
	}
	queued, err := c.run(name, cmd, req)
	if queued && err == nil && !c.tx.broken {
		c.tx.held += req.held
	} else {
		c.lease.give(req.held)
	}
	outcome := "ok"
	if err != nil {
		outcome = "error"
		c.tell(err)
		if c.tx != nil && name != "EXEC" {
			c.spoil()
		}
		c.out = respFailure(c.out, respMessage(err))
	}
	c.server.commands.WithLabelValues(strings.ToLower(name), outcome).Inc()
}

// upper returns a word of a client's in capitals, cut to what an answer quotes: it may
// be as long as a value.
func upper(word []byte) string {
	return strings.ToUpper(string(word[:min(len(word), maxQuoted)]))
}

// tell counts what is a refusal.
func (c *respConn) tell(err error) {
	listener := listenerRESP
	if c.caller.local {
		listener = listenerRESPUnix
	}
	c.server.access.tell(listener, c.caller, err)
}

// run runs a command, or queues it. cmd is nil if there is none of that name.
func (c *respConn) run(name string, cmd *respCommand, req *respRequest) (queued bool, err error) {
	access := c.server.access
	if err := access.rates.wait(c.server.ctx, c.caller); err != nil {
		return false, err
	}
	if cmd == nil {
		return false, respErrorf("ERR unknown command '%.64s'", req.args[0])
	}
	if err := access.check(c.caller, cmd.verb); err != nil {
		return false, err
	}
	switch {
	case req.refused != nil:
		return false, req.refused
	case !cmd.takes(len(req.args)):
		return false, respErrorf("ERR wrong number of arguments for '%s' command", strings.ToLower(name))
	case c.tx != nil && cmd.queue != nil:
		return true, cmd.queue(c, req.args[1:])
	case c.tx != nil && !cmd.inMulti:
		return false, respErrorf("ERR %s can not be queued: a transaction takes SET, DEL and MSET", name)
	}
	return false, cmd.run(c, req.args[1:])
}

// respError is an answer that begins with its code already.
type respError string

func (e respError) Error() string { return string(e) }

// respMessage puts an error into Redis's words where clients know some.
func respMessage(err error) string {
	code := "ERR"
	switch {
	case is[respError](err):
		return err.Error()
	case is[*notWriterError](err), is[*heads.ForkError](err), is[*heads.LostError](err), is[*damagedLogError](err):
		code = "READONLY"
	case is[*notReadyError](err), is[*quarantinedError](err):
		code = "LOADING"
	case is[*forbiddenError](err):
		code = "NOPERM"
	case is[*busyError](err), is[*rateError](err):
		code = "TRYAGAIN"
	}
	return code + " " + err.Error()
}
