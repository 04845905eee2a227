package p2p

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

// How long a peer may take.
const (
	dialTimeout   = 5 * time.Second
	headerTimeout = 10 * time.Second
	// openTimeout bounds the beginning of a stream, an error's body included.
	openTimeout = 20 * time.Second
	fileTimeout = 60 * time.Second // for a manifest or a metainfo
)

// maxHeader bounds the headers of an answer, in bytes.
const maxHeader = 16 << 10

// errTimeout is the cause of an end that this client chose.
var errTimeout = errors.New("the peer took too long")

// Client is the client side of the peer protocol. Its methods may be called
// concurrently.
type Client struct {
	name    string
	signed  bool
	digests bool
	show    func() []byte
	http    *http.Client
	pieces  *http.Client // connections of their own: a piece may hold one for long
	sources sources
	budget  *Budget
	log     *slog.Logger
	metrics clientMetrics
}

// ClientOptions configure a Client. The zero value is ready to use, but for
// Piece, which needs a Name.
type ClientOptions struct {
	// Name is this node's name, by which a source tells who asks for a piece.
	Name string
	// SignedHeads asks for signed heads with each log stream, and refuses peers
	// that send none.
	SignedHeads bool
	// Digests asks for the digests of what peers applied with each log stream.
	Digests bool
	// ShowHead returns a signed head that is shown to peers whose log is asked
	// for, nil for none. Default: none.
	ShowHead func() []byte
	// Download limits what is received. Default: no limit.
	Download *Budget
	// Dial connects to other peers. Default: TCP, without TLS.
	Dial       DialFunc
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// NewClient returns a client of the peer protocol.
func NewClient(o ClientOptions) *Client {
	if o.Dial == nil {
		o.Dial = dialPlain
	}
	if o.ShowHead == nil {
		o.ShowHead = func() []byte { return nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	transport := func() *http.Transport {
		return &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, errTimeout)
				defer cancel()
				return o.Dial.target(ctx)
			},
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
			MaxIdleConns:           64,
			IdleConnTimeout:        30 * time.Second,
			ReadBufferSize:         64 << 10,
		}
	}
	small, pieces := transport(), transport()
	small.ResponseHeaderTimeout = headerTimeout
	small.MaxIdleConnsPerHost = 2
	pieces.ReadBufferSize = pieceBuffer
	pieces.MaxConnsPerHost, pieces.MaxIdleConnsPerHost = pieceConns, pieceConns
	return &Client{
		name:    o.Name,
		signed:  o.SignedHeads,
		digests: o.Digests,
		show:    o.ShowHead,
		http:    &http.Client{Transport: small, CheckRedirect: refuseRedirect},
		pieces:  &http.Client{Transport: pieces, CheckRedirect: refuseRedirect},
		budget:  o.Download,
		log:     o.Logger,
		metrics: newClientMetrics(o.Registerer),
	}
}

func refuseRedirect(*http.Request, []*http.Request) error {
	return fmt.Errorf("%w: the peer redirects", ErrProtocol)
}

// get sends a request. The caller closes the body.
func (c *Client) get(ctx context.Context, via *http.Client, to Target, path string, query url.Values, dataset txlog.DatasetID) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: to.host(), Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(withTarget(ctx, to), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Host = to.Addr
	req.Header.Set(protocolHeader, protocolVersion)
	if !dataset.IsZero() {
		req.Header.Set(datasetHeader, dataset.String())
	}
	if c.name != "" {
		req.Header.Set(nodeHeader, c.name)
	}
	if path == logPath {
		if note := c.show(); len(note) > 0 && len(note) <= MaxSignedHead {
			req.Header.Set(headHeader, base64.StdEncoding.EncodeToString(note))
		}
	}
	resp, err := via.Do(req)
	if err != nil {
		var wrapped *url.Error // it repeats the URL
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, because(ctx, err)
	}
	if err := accept(resp); err != nil {
		resp.Body.Close()
		return nil, because(ctx, err)
	}
	return resp, nil
}

// because returns why a request or a stream ended: the cause of ctx's end, a
// failure of the network, or else what the peer sent.
func because(ctx context.Context, err error) error {
	var network net.Error
	switch cause := context.Cause(ctx); {
	case cause != nil:
		return cause
	case errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("%w: %w", errTimeout, err)
	case isNetwork(err), isAnswer(err):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
}

// isNetwork reports whether err is about the connection.
func isNetwork(err error) bool {
	var op *net.OpError
	var dial *dialError
	return errors.As(err, &op) || errors.As(err, &dial) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// isAnswer reports whether err has a type that tells what the peer said.
func isAnswer(err error) bool {
	var trimmed *txlog.TrimmedError
	var diverged *txlog.DivergedError
	var leased *LeasedError
	var busy *BusyError
	return errors.Is(err, ErrProtocol) || errors.Is(err, ErrNotHeld) || errors.Is(err, ErrOtherDataset) || errors.Is(err, ErrForbidden) || errors.Is(err, ErrUnsigned) ||
		errors.As(err, &trimmed) || errors.As(err, &diverged) || errors.As(err, &leased) || errors.As(err, &busy)
}

// Stream asks a peer for the entries after pos, forever. A zero
// dataset accepts any (a node that holds nothing yet); Stream.Dataset then
// tells which it is.
func (c *Client) Stream(ctx context.Context, from Target, dataset txlog.DatasetID, after txlog.Pos) (*Stream, error) {
	query := url.Values{}
	if c.signed {
		query.Set(headsQuery, headsSigned)
	}
	if c.digests {
		query.Set(digestsQuery, digestsSent)
	}
	s, err := c.stream(ctx, from, dataset, after, query)
	if err != nil {
		c.metrics.failed.Inc()
		return nil, fmt.Errorf("stream the log of %s after entry %d: %w", from, after.Seq, err)
	}
	return s, nil
}

// Range fetches the entries after one position up to another, which prove
// themselves by leading there, and hands them to take in order. An error of take
// is returned as it is. A *txlog.TrimmedError or *txlog.DivergedError is what the
// peer answered. Range returns how many bytes of entries arrived.
func (c *Client) Range(ctx context.Context, from Target, dataset txlog.DatasetID, after, until txlog.Pos, take func([]txlog.Entry) error) (bytes int64, err error) {
	fail := func(err error) (int64, error) {
		return bytes, fmt.Errorf("fetch entries %d to %d of %s: %w", after.Seq+1, until.Seq, from, err)
	}
	s, err := c.stream(ctx, from, dataset, after, url.Values{untilQuery: {strconv.FormatUint(until.Seq, 10)}})
	if err != nil {
		c.metrics.failed.Inc()
		return fail(err)
	}
	defer s.Close()
	for after.Seq < until.Seq {
		part, err := s.Next(rangeBatch)
		if err != nil {
			return fail(err)
		}
		for i := range part.Entries {
			bytes += int64(len(part.Entries[i].Frame()))
		}
		if n := len(part.Entries); n > 0 {
			after = part.Entries[n-1].Pos()
			if err := take(part.Entries); err != nil {
				return bytes, err
			}
		} else if part.Head.Pos.Seq <= after.Seq {
			return fail(fmt.Errorf("%w: its log ends at entry %d", ErrNotHeld, part.Head.Pos.Seq))
		}
	}
	return bytes, nil
}

// wants reports whether a query asks for something in addition.
func wants(query url.Values, name, value string) bool { return query.Get(name) == value }

// stream asks for a log stream; what else is asked for is in query.
func (c *Client) stream(ctx context.Context, from Target, dataset txlog.DatasetID, after txlog.Pos, query url.Values) (*Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	opening := time.AfterFunc(openTimeout, func() { cancel(errTimeout) })
	query.Set("after", after.String())
	resp, err := c.get(ctx, c.http, from, logPath, query, dataset)
	if err != nil {
		opening.Stop()
		cancel(err)
		return nil, err
	}
	fail := func(err error) (*Stream, error) {
		opening.Stop()
		cancel(err)
		resp.Body.Close()
		return nil, err
	}
	got, err := txlog.ParseDatasetID(resp.Header.Get(datasetHeader))
	switch {
	case err != nil:
		return fail(fmt.Errorf("%w: %s: %w", ErrProtocol, datasetHeader, err))
	case got.IsZero():
		return fail(fmt.Errorf("%w: the stream is of no dataset", ErrProtocol))
	case !dataset.IsZero() && got != dataset:
		return fail(fmt.Errorf("%w: asked for %s, the peer sends %s", ErrOtherDataset, dataset, got))
	case wants(query, headsQuery, headsSigned) && resp.Header.Get(headsHeader) != headsSigned:
		return fail(fmt.Errorf("%w: it trusts no keys, or runs an older version", ErrUnsigned))
	}
	if !opening.Stop() {
		return fail(errTimeout)
	}
	return newStream(ctx, cancel, resp.Body, from.Addr, got, after, query, c)
}

// Manifest fetches a snapshot's manifest: at most 64 KiB, unverified.
func (c *Client) Manifest(ctx context.Context, from Target, h chunker.InfoHash) ([]byte, error) {
	b, err := c.file(ctx, from, snapshotPath+h.String()+manifestLeaf, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("fetch the manifest of snapshot %s from %s: %w", h, from, err)
	}
	return b, nil
}

// Torrent fetches a snapshot's metainfo and checks that it has that infohash,
// which does not cover the list of SHA-256s: compare the piece root with the
// manifest's before using it.
func (c *Client) Torrent(ctx context.Context, from Target, h chunker.InfoHash) (*chunker.Torrent, error) {
	t, err := c.torrent(ctx, from, h)
	if err != nil {
		return nil, fmt.Errorf("fetch the torrent of snapshot %s from %s: %w", h, from, err)
	}
	return t, nil
}

func (c *Client) torrent(ctx context.Context, from Target, h chunker.InfoHash) (*chunker.Torrent, error) {
	b, err := c.file(ctx, from, snapshotPath+h.String()+torrentLeaf, maxMetainfo)
	if err != nil {
		return nil, err
	}
	t, err := chunker.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if got := t.InfoHash(); got != h {
		return nil, fmt.Errorf("%w: the peer sent the torrent %s", ErrProtocol, got)
	}
	return t, nil
}

// file fetches a small file.
func (c *Client) file(ctx context.Context, from Target, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, fileTimeout, errTimeout)
	defer cancel()
	resp, err := c.get(ctx, c.http, from, path, nil, txlog.DatasetID{})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := readLimited(&budgetReader{ctx, resp.Body, c.budget}, limit)
	if err != nil {
		return nil, because(ctx, err)
	}
	return b, nil
}

// Close ends idle connections. Streams end with their context.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.pieces.CloseIdleConnections()
}

type clientMetrics struct {
	active                    prometheus.Gauge
	failed, broken            prometheus.Counter
	entries, bytes, wireBytes prometheus.Counter
	pieces                    *prometheus.CounterVec // by result
}

func newClientMetrics(reg prometheus.Registerer) clientMetrics {
	counter := func(name, help string) prometheus.Counter {
		return register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
	}
	return clientMetrics{
		active: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "qs_p2p_stream_followed", Help: "Log streams of peers that are being read now."})),
		failed:    counter("qs_p2p_stream_open_failures_total", "Attempts to open a peer's log stream that failed."),
		broken:    counter("qs_p2p_stream_broken_total", "Log streams of peers that broke: the connection, silence, or what was sent."),
		entries:   counter("qs_p2p_stream_received_entries_total", "Entries received from peers and verified."),
		bytes:     counter("qs_p2p_stream_received_bytes_total", "Bytes of entries received from peers, after decompression."),
		wireBytes: counter("qs_p2p_stream_received_wire_bytes_total", "Bytes of log streams received from peers, before decompression."),
		pieces:    newPieceCounter(reg, "qs_p2p_pieces_asked_total", "Requests for a piece to sources, by how they ended."),
	}
}
