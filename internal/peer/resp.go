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
)

const (
	// maxRESPClients bounds the connections of one node.
	maxRESPClients = 4096
	// respSpill is how much of pipelined answers is gathered before they are sent.
	respSpill = 64 << 10
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
	cursors       *cursors
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

func newRESPServer(r *reads, w *writer, o *Options, reg prometheus.Registerer, logger *slog.Logger) *respServer {
	s := &respServer{
		name: o.Name, version: o.Version, reads: r, writer: w, cursors: newCursors(), logger: logger,
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
	if s.stopped || len(s.conns) >= maxRESPClients {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(respFailure(nil, "ERR max number of clients reached"))
		conn.Close()
		return
	}
	s.conns[conn] = struct{}{}
	s.wg.Go(func() {
		c := &respConn{server: s, conn: conn}
		c.serve()
		conn.Close()
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
	server *respServer
	conn   net.Conn
	out    []byte // answers that were not sent yet
	within bool   // a command: its first byte is there
	tx     *respTx
	quit   bool
	// lastSeq is the entry of the last write here, for INFO.
	lastSeq uint64
}

func (c *respConn) serve() {
	in := bufio.NewReaderSize(c, maxInline)
	for !c.quit {
		c.within = false
		if _, err := in.Peek(1); err != nil {
			return
		}
		c.within = true
		req, err := readRESP(in)
		if err != nil {
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

// Read reads from the client: between commands as long as it takes, within one
// no longer than stallTimeout.
func (c *respConn) Read(p []byte) (int, error) {
	var deadline time.Time
	if c.within {
		deadline = time.Now().Add(stallTimeout)
	}
	if err := c.server.setReadDeadline(c.conn, deadline); err != nil {
		return 0, err
	}
	return c.conn.Read(p)
}

// setReadDeadline does not undo the one that stop sets.
func (s *respServer) setReadDeadline(conn net.Conn, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return net.ErrClosed
	}
	return conn.SetReadDeadline(t)
}

func (c *respConn) flush() error {
	for rest := c.out; len(rest) > 0; {
		chunk := rest[:min(len(rest), writeChunk)]
		if err := c.conn.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
			return err
		}
		if _, err := c.conn.Write(chunk); err != nil {
			return err
		}
		rest = rest[len(chunk):]
	}
	if cap(c.out) > 2*respSpill {
		c.out = nil // one large answer is no reason to keep so much
	}
	c.out = c.out[:0]
	return nil
}

// dispatch runs a command and appends its answer.
func (c *respConn) dispatch(req *respRequest) {
	name := strings.ToUpper(string(req.args[0]))
	cmd, ok := respCommands[name]
	var err error
	switch {
	case !ok:
		name = "other"
		err = respErrorf("ERR unknown command '%.64s'", req.args[0])
	case req.tooLong != nil:
		err = req.tooLong
	case !cmd.takes(len(req.args)):
		err = respErrorf("ERR wrong number of arguments for '%s' command", strings.ToLower(name))
	case c.tx != nil && cmd.queue != nil:
		err = cmd.queue(c, req.args[1:])
	case c.tx != nil && !cmd.inMulti:
		err = respErrorf("ERR %s can not be queued: a transaction takes SET, DEL and MSET", name)
	default:
		err = cmd.run(c, req.args[1:])
	}
	outcome := "ok"
	if err != nil {
		outcome = "error"
		if c.tx != nil && name != "EXEC" {
			c.tx.broken = true
		}
		c.out = respFailure(c.out, respMessage(err))
	}
	c.server.commands.WithLabelValues(strings.ToLower(name), outcome).Inc()
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
	case is[*notWriterError](err):
		code = "READONLY"
	case is[*notReadyError](err):
		code = "LOADING"
	}
	return code + " " + err.Error()
}
