package p2p

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	defaultMaxStreams = 1024
	retryAfter        = 2 * time.Second

	// sendBatch is about how many bytes of entries are taken from the log at once.
	sendBatch = 256 << 10
	// window is zstd's: small, because each stream has its own on both sides.
	window = 256 << 10
	// flushAfter bounds how long entries wait to be compressed with later ones
	// while those keep coming. A stream that is level with the log is flushed at
	// once.
	flushAfter = 5 * time.Millisecond
	// stuckAfter is how long a client may refuse to take bytes.
	stuckAfter = 30 * time.Second
	// requestTimeout is how long a request may take to arrive, idleTimeout how long the
	// next may be in coming, and maxRequestHeader how long it may be, in bytes.
	requestTimeout   = 10 * time.Second
	idleTimeout      = 2 * time.Minute
	maxRequestHeader = 8 << 10
)

// ServerOptions configure the peer protocol's server side.
type ServerOptions struct {
	// Log is what is streamed. Required.
	Log *txlog.Log
	// Heads are sent to peers that ask for signed heads. Default: there are none.
	Heads Heads
	// Witness is told of the signed heads that those who ask for the log show,
	// unverified, and who they are. Default: nobody is.
	Witness func(note []byte, who string)
	// Digests are sent to peers that ask for them. Default: there are none.
	Digests Digests
	// Snapshot returns the manifest and the metainfo of a snapshot that this
	// node holds. Required.
	Snapshot func(chunker.InfoHash) (manifest, metainfo []byte, ok bool)
	// Pieces are what others may ask for. Default: there are none.
	Pieces Pieces
	// Upload limits log streams and small files, and Egress pieces. Default: no limit.
	Upload, Egress *Budget
	// MaxStreams bounds concurrent log streams. Default 1024.
	MaxStreams int
	// Refused hears of peers that were refused, and why. Default: they are logged.
	Refused    RefusedFunc
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Server is the peer protocol's server side, an http.Handler.
type Server struct {
	o       ServerOptions
	mux     *http.ServeMux
	slots   chan struct{} // one token per log stream
	quotas  quotas
	pieces  *pieceServer
	metrics serverMetrics
}

// NewServer returns a server. Its streams end when the log or the request ends.
func NewServer(o ServerOptions) *Server {
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultMaxStreams
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Refused == nil {
		o.Refused = logRefused(o.Logger)
	}
	s := &Server{
		o: o, mux: http.NewServeMux(), slots: make(chan struct{}, o.MaxStreams),
		metrics: newServerMetrics(o.Registerer),
	}
	s.pieces = newPieceServer(o.Pieces, o.Egress, s.quotas.charge, o.Registerer)
	snapshot := "GET " + snapshotPath + "{infohash}"
	s.mux.HandleFunc("GET "+logPath, s.log)
	s.mux.HandleFunc("GET "+digestPath, s.digest)
	s.mux.HandleFunc(snapshot+manifestLeaf, s.snapshot(func(manifest, _ []byte) []byte { return manifest }))
	s.mux.HandleFunc(snapshot+torrentLeaf, s.snapshot(func(_, metainfo []byte) []byte { return metainfo }))
	s.mux.HandleFunc(snapshot+haveLeaf, s.pieces.serveHave)
	s.mux.HandleFunc(snapshot+pieceLeaf+"{index}", s.pieces.servePiece)
	return s
}

// Attach makes srv serve s, with the protocol's limits, and lets s watch its
// connections: that an asker is gone is known by its last one's end, and connections
// beyond 4,096 are closed.
func (s *Server) Attach(srv *http.Server) {
	srv.Handler = s
	srv.ReadHeaderTimeout, srv.IdleTimeout, srv.MaxHeaderBytes = requestTimeout, idleTimeout, maxRequestHeader
	srv.ConnContext = s.pieces.opened
	srv.ConnState = s.pieces.changed
}

// ServeHTTP implements http.Handler. With TLS it serves those that may be in the fleet.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(protocolHeader, protocolVersion)
	beImpatient(w) // streams and pieces renew it
	leave, err := s.enter(w, r)
	if err != nil {
		refuse(w, err)
		return
	}
	defer leave()
	s.mux.ServeHTTP(w, r)
}

// enter checks and counts a request in. leave counts it out.
func (s *Server) enter(w http.ResponseWriter, r *http.Request) (leave func(), err error) {
	id, err := authorise(r.TLS)
	if err != nil {
		s.o.Refused(trust.ReasonOf(err), nameOf(id, r.RemoteAddr), err)
		return nil, err
	}
	if got := r.Header.Get(protocolHeader); got != protocolVersion {
		return nil, fmt.Errorf("%w: the request has %s %q; this node speaks %q", ErrProtocol, protocolHeader, got, protocolVersion)
	}
	if r.ContentLength != 0 {
		// net/http would read on, with all the time in the world.
		http.NewResponseController(w).SetReadDeadline(time.Now())
		w.Header().Set("Connection", "close")
		return nil, fmt.Errorf("%w: the request has a body", ErrProtocol)
	}
	if id.IsZero() {
		return func() {}, nil
	}
	if leave, err = s.quotas.enter(id.Name, r.URL.Path); err != nil {
		s.o.Refused(TooMany, id.String(), err)
	}
	return leave, err
}

// beImpatient gives the client stuckAfter from now to take what is written.
func beImpatient(w http.ResponseWriter) error {
	err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stuckAfter))
	if errors.Is(err, http.ErrNotSupported) { // as in tests of a handler alone
		return nil
	}
	return err
}

// snapshot serves one of the two files of a snapshot.
func (s *Server) snapshot(pick func(manifest, metainfo []byte) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h, err := chunker.ParseInfoHash(r.PathValue("infohash"))
		if err != nil {
			refuse(w, fmt.Errorf("%w: %w", ErrProtocol, err))
			return
		}
		manifest, metainfo, ok := s.o.Snapshot(h)
		if !ok {
			refuse(w, fmt.Errorf("%w: %s", ErrNotHeld, h))
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		body := pick(manifest, metainfo)
		if s.o.Upload.Wait(r.Context(), Urgent, len(body)) != nil {
			return // nobody listens any more
		}
		beImpatient(w)
		w.Write(body)
	}
}

// log serves a log stream.
func (s *Server) log(w http.ResponseWriter, r *http.Request) {
	s.witness(r)
	reader, after, until, err := s.open(r)
	if err != nil {
		s.metrics.refused.Inc()
		s.o.Logger.Debug("log stream refused", "peer", r.RemoteAddr, "error", err)
		refuse(w, err)
		return
	}
	defer reader.Close()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.metrics.refused.Inc()
		refuse(w, &BusyError{fmt.Sprintf("%d log streams are open already: ask another peer or try again later", cap(s.slots)), retryAfter})
		return
	}
	s.metrics.active.Inc()
	defer s.metrics.active.Dec()
	w.Header().Set(datasetHeader, s.o.Log.Dataset().String())
	w.Header().Set("Content-Type", "application/zstd")
	var heads Heads
	if r.URL.Query().Get(headsQuery) == headsSigned && s.o.Heads != nil {
		heads = s.o.Heads
		w.Header().Set(headsHeader, headsSigned)
	}
	var digests Digests
	if r.URL.Query().Get(digestsQuery) == digestsSent {
		digests = s.o.Digests
	}
	err = s.stream(r.Context(), w, reader, after, until, heads, digests)
	s.o.Logger.Debug("log stream ended", "peer", r.RemoteAddr, "error", err)
}

// witness passes on the signed head that an asker shows, also one whose request is
// refused then.
func (s *Server) witness(r *http.Request) {
	text := r.Header.Get(headHeader)
	if text == "" || s.o.Witness == nil || len(text) > base64.StdEncoding.EncodedLen(MaxSignedHead) {
		return
	}
	if note, err := base64.StdEncoding.DecodeString(text); err == nil {
		id, _ := authorise(r.TLS)
		s.o.Witness(note, nameOf(id, r.RemoteAddr))
	}
}

// open checks a request for a log stream and opens the log for it. The stream ends
// with entry until, if that is not 0.
func (s *Server) open(r *http.Request) (_ *txlog.Reader, after txlog.Pos, until uint64, err error) {
	after, err = txlog.ParsePos(r.URL.Query().Get("after"))
	if err != nil {
		return nil, after, 0, fmt.Errorf("%w: after: %w", ErrProtocol, err)
	}
	if text := r.URL.Query().Get(untilQuery); text != "" {
		if until, err = strconv.ParseUint(text, 10, 64); err != nil || until <= after.Seq {
			return nil, after, 0, fmt.Errorf("%w: until: %q is not the seq of a later entry", ErrProtocol, text)
		}
	}
	if err := s.checkDataset(r); err != nil {
		return nil, after, 0, err
	}
	reader, err := s.o.Log.Reader(after)
	return reader, after, until, err
}

// checkDataset refuses a request about another dataset than this node's.
func (s *Server) checkDataset(r *http.Request) error {
	have := s.o.Log.Dataset()
	if have.IsZero() {
		return &BusyError{"this peer holds no dataset yet", retryAfter}
	}
	text := r.Header.Get(datasetHeader)
	if text == "" {
		return nil
	}
	want, err := txlog.ParseDatasetID(text)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	case want != have:
		return fmt.Errorf("%w: asked for %s, this peer holds %s", ErrOtherDataset, want, have)
	}
	return nil
}

type serverMetrics struct {
	active                    prometheus.Gauge
	refused                   prometheus.Counter
	entries, bytes, wireBytes prometheus.Counter
}

func newServerMetrics(reg prometheus.Registerer) serverMetrics {
	counter := func(name, help string) prometheus.Counter {
		return register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
	}
	return serverMetrics{
		active: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "qs_p2p_stream_served", Help: "Log streams that are being served to peers now."})),
		refused:   counter("qs_p2p_stream_refused_total", "Requests for a log stream that were refused."),
		entries:   counter("qs_p2p_stream_sent_entries_total", "Entries sent to peers."),
		bytes:     counter("qs_p2p_stream_sent_bytes_total", "Bytes of entries sent to peers, before compression."),
		wireBytes: counter("qs_p2p_stream_sent_wire_bytes_total", "Bytes of log streams sent to peers, after compression."),
	}
}
