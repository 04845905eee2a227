package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// pieceConns bounds the connections to one source.
	pieceConns = 16
	// stallTimeout is how long a source may send no byte.
	stallTimeout = 10 * time.Second
	// readChunk is about how much of a piece is read at once.
	readChunk = 256 << 10
	// pieceBuffer is for the headers; most of a piece goes past it.
	pieceBuffer = 4 << 10
)

var errStalled = fmt.Errorf("%w: it sent nothing for %v", errTimeout, stallTimeout)

// Piece reads piece index of a snapshot from a peer into buf, which
// is as long as the piece. What arrives is not verified.
//
// It fails with ErrNotHeld, with a *LeasedError or a *BusyError, with
// ErrProtocol for anything that is not exactly the piece, or with what befell
// the connection. There is no limit on the whole, so that a piece may take
// minutes; a source that sends no byte at all for 10 s, on any connection, is
// given up.
func (c *Client) Piece(ctx context.Context, from Target, ih chunker.InfoHash, index int, buf []byte) error {
	err := c.piece(ctx, from, piecePath(ih, index), buf)
	c.metrics.pieces.WithLabelValues(pieceResult(err)).Inc()
	if err != nil {
		return fmt.Errorf("fetch piece %d of snapshot %s from %s: %w", index, ih, from, err)
	}
	return nil
}

func (c *Client) piece(ctx context.Context, from Target, path string, buf []byte) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	src := c.sources.get(from.Addr)
	defer c.sources.put(from.Addr, src)
	var conn atomic.Pointer[expecter] // nil: none yet, or it can not be told
	expect := func(n int64) {
		if e := conn.Load(); e != nil {
			(*e).Expect(n)
		}
	}
	defer src.watch(func() { expect(0) }, cancel)()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			if e := expecterOf(i.Conn); e != nil {
				conn.Store(&e)
			}
		},
	})
	resp, err := c.get(ctx, c.pieces, from, path, nil, txlog.DatasetID{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := wantLength(resp, int64(len(buf))); err != nil {
		return err
	}
	for len(buf) > 0 {
		expect(int64(len(buf)))
		n, err := resp.Body.Read(buf[:min(len(buf), readChunk, c.budget.chunk())])
		if n > 0 {
			if buf = buf[n:]; len(buf) == 0 {
				expect(0) // HTTP reads already what comes next
			}
			src.heard(func() { c.budget.Wait(ctx, c.budget.ownClass(), n) })
		}
		if err != nil && len(buf) > 0 {
			return because(ctx, within(err))
		}
	}
	// The connection is used again only if the end was seen.
	if n, err := resp.Body.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return because(ctx, errors.Join(err, fmt.Errorf("%w: no end after the piece", ErrProtocol)))
	}
	return nil
}

// Have asks a peer which of a snapshot's pieces it holds.
func (c *Client) Have(ctx context.Context, from Target, ih chunker.InfoHash, pieces int) ([]bool, error) {
	have, err := c.have(ctx, from, ih, pieces)
	if err != nil {
		return nil, fmt.Errorf("ask %s which pieces of snapshot %s it holds: %w", from, ih, err)
	}
	return have, nil
}

func (c *Client) have(ctx context.Context, from Target, ih chunker.InfoHash, pieces int) ([]bool, error) {
	b, err := c.file(ctx, from, havePath(ih), int64(bitmapSize(pieces)))
	if err != nil {
		return nil, err
	}
	return parseBitmap(b, pieces)
}

// wantLength checks how long the peer says that its answer is.
func wantLength(resp *http.Response, size int64) error {
	if resp.ContentLength != size {
		return fmt.Errorf("%w: the peer sends %d bytes (-1: it does not say): want %d", ErrProtocol, resp.ContentLength, size)
	}
	return nil
}

// sources are the addresses that pieces are being asked from.
type sources struct {
	mu     sync.Mutex // guards byAddr and the users of each
	byAddr map[string]*source
}

// source is what the requests to one address share. A source sends an asker one
// piece at a time, so a request may rightly hear nothing while others do.
type source struct {
	users   int
	dealing atomic.Int32 // requests that have not dealt yet with what came
	last    atomic.Int64 // when something was dealt with, in ns since epoch
	epoch   time.Time
}

func (s *sources) get(addr string) *source {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.byAddr[addr]
	if src == nil {
		src = &source{epoch: time.Now()}
		if s.byAddr == nil {
			s.byAddr = make(map[string]*source)
		}
		s.byAddr[addr] = src
	}
	src.users++
	return src
}

func (s *sources) put(addr string, src *source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src.users--; src.users == 0 {
		delete(s.byAddr, addr)
	}
}

// heard notes that something came, and that the source is not to blame for what
// passes until it is dealt with.
func (s *source) heard(deal func()) {
	s.dealing.Add(1)
	deal()
	s.dealing.Add(-1)
	s.last.Store(int64(time.Since(s.epoch)))
}

// watch ends a request, which begins now, when the source stalls. Before, it calls doubt:
// a little may have come that nobody was woken for.
func (s *source) watch(doubt func(), cancel context.CancelCauseFunc) (stop func()) {
	began := time.Since(s.epoch)
	var mu sync.Mutex // guards timer, which fires once it is set, and stopped
	mu.Lock()
	defer mu.Unlock()
	var timer *time.Timer
	stopped := false
	timer = time.AfterFunc(stallTimeout/2, func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped { // as it fired: it is not to be set again
			return
		}
		silent := time.Since(s.epoch) - max(began, time.Duration(s.last.Load()))
		if s.dealing.Load() > 0 {
			silent = 0
		}
		switch {
		case silent >= stallTimeout:
			cancel(errStalled)
		case silent >= stallTimeout/2:
			doubt()
			timer.Reset(stallTimeout - silent)
		default:
			timer.Reset(stallTimeout/2 - silent)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// pieceResults are the labels of how a request for a piece ended.
var pieceResults = []string{"sent", "leased", "not_held", "busy", "failed"}

func pieceResult(err error) string {
	var leased *LeasedError
	var busy *BusyError
	switch {
	case err == nil:
		return "sent"
	case errors.As(err, &leased):
		return "leased"
	case errors.As(err, &busy):
		return "busy"
	case errors.Is(err, ErrNotHeld):
		return "not_held"
	default:
		return "failed"
	}
}

// newPieceCounter returns a counter of requests for pieces, by result.
func newPieceCounter(reg prometheus.Registerer, name, help string) *prometheus.CounterVec {
	c := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"result"}))
	for _, result := range pieceResults {
		c.WithLabelValues(result)
	}
	return c
}
