package p2p

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/p2p/lease"
)

// Limits of what askers may keep a source busy with.
const (
	// maxAskerRequests bounds the requests for pieces of one asker that are
	// being served or wait for their turn, and so the connections it asks on.
	maxAskerRequests = 2 * pieceConns
	// maxRequests bounds those of all askers, and maxServerConns the
	// connections to the server, whatever they are for.
	maxRequests    = 2048
	maxServerConns = 4096

	// sendChunk is how much of a piece is sent at a time. A receiver that does
	// not take it within stuckAfter is given up.
	sendChunk = 256 << 10

	busyRetry = time.Second
)

// pieceServer sends pieces: to each asker one at a time, and each piece to one
// asker of a colo at a time.
type pieceServer struct {
	from    Pieces // nil: there are none
	egress  *Budget
	failed  func(name string) // hears whose requests fail
	started time.Time
	metrics pieceMetrics

	mu       sync.Mutex // guards what follows
	askers   map[string]*asker
	grants   map[chunker.InfoHash]*lease.Grants
	requests int // of all askers
	conns    map[net.Conn]*serverConn
}

// asker is a node that has asked for pieces and is still connected, or has a
// request.
type asker struct {
	name     string
	turn     chan struct{} // holds a token while a piece is being sent
	requests int           // being served, or waiting for their turn
	conns    int           // that belong to it
}

// serverConn is a connection to the server.
type serverConn struct {
	asker string // who asked for a piece on it; "": nobody yet
	cork  corker
}

type serverConnKey struct{}

// serverConnOf returns what is known of a request's connection; nil: connections are
// not tracked.
func serverConnOf(ctx context.Context) *serverConn {
	c, _ := ctx.Value(serverConnKey{}).(*serverConn)
	return c
}

func newPieceServer(from Pieces, egress *Budget, failed func(name string), reg prometheus.Registerer) *pieceServer {
	return &pieceServer{
		from: from, egress: egress, failed: failed, started: time.Now(), metrics: newPieceMetrics(reg),
		askers: make(map[string]*asker),
		grants: make(map[chunker.InfoHash]*lease.Grants),
		conns:  make(map[net.Conn]*serverConn),
	}
}

// serveHave answers which pieces there are.
func (s *pieceServer) serveHave(w http.ResponseWriter, r *http.Request) {
	ih, err := chunker.ParseInfoHash(r.PathValue("infohash"))
	if err != nil {
		refuse(w, fmt.Errorf("%w: %w", ErrProtocol, err))
		return
	}
	if s.from == nil {
		refuse(w, fmt.Errorf("%w: %s", ErrNotHeld, ih))
		return
	}
	have, err := s.from.have(ih)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(appendBitmap(nil, have))
}

// servePiece sends a piece. Once its first bytes are sent, a failure can only be told by
// ending the connection.
func (s *pieceServer) servePiece(w http.ResponseWriter, r *http.Request) {
	began := false
	name, colo, err := askerOf(r)
	if err == nil {
		err = s.piece(w, r, name, colo, &began)
	}
	if err != nil {
		s.failed(name)
	}
	s.metrics.served.WithLabelValues(pieceResult(err)).Inc()
	switch {
	case err == nil:
	case began:
		panic(http.ErrAbortHandler)
	default:
		beImpatient(w) // it may have waited for long
		refuse(w, err)
	}
}

func (s *pieceServer) piece(w http.ResponseWriter, r *http.Request, name, colo string, began *bool) error {
	ih, err := chunker.ParseInfoHash(r.PathValue("infohash"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	index, err := parseIndex(r.PathValue("index"))
	if err != nil {
		return err
	}
	if s.from == nil {
		return fmt.Errorf("%w: %s", ErrNotHeld, ih)
	}
	if err := s.from.holds(ih, index); err != nil {
		return err
	}
	a, err := s.admit(r.Context(), name)
	if err != nil {
		return err
	}
	defer s.leave(a)
	if colo == "" {
		peer, _ := s.from.asker(name)
		colo = peer.Colo
	}
	done, err := s.grant(ih, index, name, colo)
	if err != nil {
		return err
	}
	err = s.inTurn(r.Context(), a, func() error {
		p, err := s.from.open(ih, index)
		if err != nil {
			return err
		}
		defer p.close()
		return s.send(r.Context(), w, a.name, p, began)
	})
	done(err == nil)
	return err
}

// admit counts a request in.
func (s *pieceServer) admit(ctx context.Context, name string) (*asker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := serverConnOf(ctx)
	if c != nil && c.asker != "" && c.asker != name {
		return nil, fmt.Errorf("%w: %s is %q on a connection of %q", ErrProtocol, nodeHeader, name, c.asker)
	}
	a := s.askers[name]
	switch {
	case s.requests >= maxRequests:
		return nil, &BusyError{fmt.Sprintf("%d pieces are being asked for already", s.requests), busyRetry}
	case a != nil && a.requests >= maxAskerRequests:
		return nil, &BusyError{fmt.Sprintf("%s is asking for %d pieces already", name, a.requests), busyRetry}
	case a != nil && a.conns >= maxAskerRequests && c != nil && c.asker == "":
		return nil, &BusyError{fmt.Sprintf("%s is asking on %d connections already", name, a.conns), busyRetry}
	}
	if a == nil {
		a = &asker{name: name, turn: make(chan struct{}, 1)}
		s.askers[name] = a
	}
	if c != nil && c.asker == "" {
		c.asker = name
		a.conns++
	}
	a.requests++
	s.requests++
	return a, nil
}

// leave counts a request out.
func (s *pieceServer) leave(a *asker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.requests--
	s.requests--
	s.forget(a)
}

// forget drops an asker that has nothing here any more. s.mu is held.
func (s *pieceServer) forget(a *asker) {
	if a.requests == 0 && a.conns == 0 {
		delete(s.askers, a.name)
	}
}

// grant reserves a piece for an asker's colo, which is what its certificate says or
// gossip, not the asker. Nodes of which neither tells count as one colo. done says
// how sending it ended.
func (s *pieceServer) grant(ih chunker.InfoHash, index int, name, colo string) (done func(sent bool), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.grants[ih]
	if g == nil {
		g = lease.NewGrants()
		for other := range s.grants { // snapshots come and go
			if _, err := s.from.have(other); err != nil {
				delete(s.grants, other)
			}
		}
		s.grants[ih] = g
	}
	ok, holder, retry := g.Ask(colo, name, index, s.now())
	if !ok {
		return nil, &LeasedError{holder, retry}
	}
	return func(sent bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		g.Done(colo, name, index, sent, s.now())
	}, nil
}

func (s *pieceServer) now() time.Duration { return time.Since(s.started) }

// inTurn calls send when no other piece is being sent to the asker.
func (s *pieceServer) inTurn(ctx context.Context, a *asker, send func() error) error {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
		return send()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send sends a piece. began tells whether the answer is out already.
func (s *pieceServer) send(ctx context.Context, w http.ResponseWriter, name string, p *openPiece, began *bool) error {
	start := time.Now()
	var cork corker
	if c := serverConnOf(ctx); c != nil {
		cork = c.cork
	}
	s.metrics.sending.Inc()
	defer s.metrics.sending.Dec()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(p.size, 10))
	for p.sent < p.size {
		peer, near := s.from.asker(name) // it may have begun a repair
		size := min(p.size-p.sent, sendChunk, int64(s.egress.chunk()))
		if err := s.egress.Wait(ctx, peer.class(), int(size)); err != nil {
			return err
		}
		if err := beImpatient(w); err != nil {
			return err
		}
		var n int64
		err := together(cork, func() (err error) {
			n, err = p.writeTo(w, size)
			return err
		})
		s.metrics.bytes.WithLabelValues(to(near)).Add(float64(n))
		if errors.Is(err, errUnreadable) && p.sent == 0 {
			w.Header().Del("Content-Length")
			return fmt.Errorf("%w: %w", ErrNotHeld, err)
		}
		*began = true
		if err != nil {
			return err
		}
	}
	s.metrics.seconds.Observe(time.Since(start).Seconds())
	return nil
}

// opened and changed are called as connections come and go.

func (s *pieceServer) opened(ctx context.Context, c net.Conn) context.Context {
	sc := &serverConn{cork: corkOf(c)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = sc
	return context.WithValue(ctx, serverConnKey{}, sc)
}

func (s *pieceServer) changed(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(s.conns) > maxServerConns {
			c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		sc := s.conns[c]
		delete(s.conns, c)
		if sc == nil || sc.asker == "" {
			return
		}
		a := s.askers[sc.asker]
		if a.conns--; a.conns == 0 {
			// What it was given may not be passed on any more.
			for _, g := range s.grants {
				g.Gone(a.name)
			}
		}
		s.forget(a)
	}
}

type pieceMetrics struct {
	served  *prometheus.CounterVec // by result
	bytes   *prometheus.CounterVec // by where the asker is
	sending prometheus.Gauge
	seconds prometheus.Histogram
}

func newPieceMetrics(reg prometheus.Registerer) pieceMetrics {
	m := pieceMetrics{
		served: newPieceCounter(reg, "qs_p2p_pieces_served_total", "Requests for a piece by other nodes, by how they ended."),
		bytes: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_p2p_pieces_served_bytes_total", Help: "Bytes of pieces sent to nodes that asked for them, by where those are."}, []string{"to"})),
		sending: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "qs_p2p_pieces_sending", Help: "Pieces that are being sent now to nodes that asked for them."})),
		seconds: register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "qs_p2p_piece_send_seconds", Help: "How long it took to send a piece, without the wait for its turn.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)})),
	}
	for _, near := range []bool{true, false} {
		m.bytes.WithLabelValues(to(near))
	}
	return m
}

func to(near bool) string {
	if near {
		return FromOwnColo.String()
	}
	return FromOtherColos.String()
}
