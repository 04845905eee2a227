package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
)

var aHash = chunker.InfoHash{1, 2, 3}

// TestPieceAnswers has a peer answer in every way.
func TestPieceAnswers(t *testing.T) {
	checkLeaks(t)
	piece := bytes.Repeat([]byte("piece"), 100_000)
	send := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b)
		}
	}
	refuse := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	leased := func(holder string, retry time.Duration) func(error) bool {
		return func(err error) bool {
			var e *p2p.LeasedError
			return errors.As(err, &e) && *e == p2p.LeasedError{Holder: holder, Retry: retry} && !errors.Is(err, p2p.ErrProtocol)
		}
	}
	busy := func(retry time.Duration) func(error) bool {
		return func(err error) bool {
			var e *p2p.BusyError
			return errors.As(err, &e) && e.Retry == retry && !errors.Is(err, p2p.ErrProtocol)
		}
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   func(error) bool
	}{
		"the piece": {send(piece), func(err error) bool { return err == nil }},
		"too short": {send(piece[1:]), is(p2p.ErrProtocol)},
		"too long":  {send(append(piece[:len(piece):len(piece)], 0)), is(p2p.ErrProtocol)},
		"empty":     {send(nil), is(p2p.ErrProtocol)},
		"no length": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write(piece[:1])
			http.NewResponseController(w).Flush()
			w.Write(piece[1:])
		}, is(p2p.ErrProtocol)},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(piece)))
			w.Write(piece[1:])
			panic(http.ErrAbortHandler)
		}, is(io.ErrUnexpectedEOF)},
		"not held":              {refuse(404, `{"error":"no"}`), is(p2p.ErrNotHeld)},
		"leased":                {refuse(409, `{"error":"no","holder":"w2","retry_ms":1500}`), leased("w2", 1500*time.Millisecond)},
		"leased for ever":       {refuse(409, `{"error":"no","holder":"w2","retry_ms":9223372036854775807}`), leased("w2", time.Minute)},
		"leased till before":    {refuse(409, `{"error":"no","holder":"w2","retry_ms":-9223372036854775808}`), leased("w2", 0)},
		"leased to nobody":      {refuse(409, `{"error":"no","retry_ms":1}`), is(p2p.ErrProtocol)},
		"leased to a novel":     {refuse(409, `{"error":"no","holder":"`+strings.Repeat("w", 200)+`"}`), is(p2p.ErrProtocol)},
		"busy":                  {refuse(503, `{"error":"no","retry_ms":20}`), busy(20 * time.Millisecond)},
		"busy, it says no more": {refuse(503, `{}`), busy(0)},
		"refused":               {refuse(400, `{"error":"no"}`), is(p2p.ErrProtocol)},
		"redirects":             {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, is(p2p.ErrProtocol)},
		"unreadable":            {refuse(409, `<html>`), is(p2p.ErrProtocol)},
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if want := "/p2p/v1/snapshot/" + aHash.String() + "/piece/7"; r.URL.Path != want || r.Header.Get("Qs-Node") != "w1" {
					t.Errorf("%s by %q", r.URL.Path, r.Header.Get("Qs-Node"))
				}
				w.Header().Set("Qs-Protocol", "1")
				test.answer(w, r)
			}))
			c := newClient(t, p2p.ClientOptions{Name: "w1"})
			buf := make([]byte, len(piece))
			err := c.Piece(t.Context(), p2p.Target{Addr: ln.Addr().String()}, aHash, 7, buf)
			if !test.want(err) {
				t.Errorf("got %v", err)
			}
			if err == nil && !bytes.Equal(buf, piece) {
				t.Error("that is not the piece")
			}
		})
	}
}

func TestHaveAnswers(t *testing.T) {
	checkLeaks(t)
	for name, test := range map[string]struct {
		pieces int
		sent   []byte
		want   string // a 1 for each piece there is; empty: an error
	}{
		"one":            {1, []byte{0x80}, "1"},
		"first and last": {9, []byte{0x80, 0x80}, "100000001"},
		"whole bytes":    {16, []byte{0x0f, 0xf1}, "0000111111110001"},
		"a spare bit":    {9, []byte{0x80, 0xc0}, ""},
		"too short":      {9, []byte{0x80}, ""},
		"too long":       {8, []byte{0x80, 0}, ""},
		"nothing":        {1, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Qs-Protocol", "1")
				w.Write(test.sent)
			}))
			have, err := newClient(t, p2p.ClientOptions{Name: "w1"}).Have(t.Context(), p2p.Target{Addr: ln.Addr().String()}, aHash, test.pieces)
			var got strings.Builder
			for _, ok := range have {
				fmt.Fprint(&got, map[bool]int{true: 1}[ok])
			}
			if got.String() != test.want || errors.Is(err, p2p.ErrProtocol) != (test.want == "") {
				t.Errorf("got %s, %v", got.String(), err)
			}
		})
	}
}

// dripper answers requests for pieces of 100 bytes with a byte now and then.
func dripper(interval time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Qs-Protocol", "1")
		w.Header().Set("Content-Length", "100")
		if strings.HasSuffix(r.URL.Path, "/0") { // the others wait for their turn
			for range 100 {
				select {
				case <-time.After(interval):
				case <-r.Context().Done():
					return
				}
				w.Write([]byte{1})
				if http.NewResponseController(w).Flush() != nil {
					return
				}
			}
			return
		}
		<-r.Context().Done()
	})
}

// TestStalledSource: slow is not stalled, and what waits behind a piece that
// comes is not stalled either.
func TestStalledSource(t *testing.T) {
	for name, test := range map[string]struct {
		interval time.Duration
		first    bool          // the first piece comes
		second   time.Duration // when the second request is given up
	}{
		"slow":    {9 * time.Second, true, 100*9*time.Second + 10*time.Second},
		"stalled": {11 * time.Second, false, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				srv := serve(t, net, dripper(test.interval))
				c := p2p.NewClient(p2p.ClientOptions{Name: "w1", Dial: net.dial})
				start := time.Now()
				waiting := make(chan error)
				go func() { waiting <- c.Piece(t.Context(), p2p.Target{Addr: "peer:1"}, aHash, 1, make([]byte, 100)) }()
				if err := c.Piece(t.Context(), p2p.Target{Addr: "peer:1"}, aHash, 0, make([]byte, 100)); (err == nil) != test.first {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
				if err := <-waiting; err == nil || time.Since(start) != test.second {
					t.Errorf("the other request ended after %v, want %v: %v", time.Since(start), test.second, err)
				} else {
					t.Log(err)
				}
				c.Close()
				srv.Close()
			})
		})
	}
}

// TestSlowSourceWakes: a source that sends a few bytes is heard, though a reader is woken for
// more than that.
func TestSlowSourceWakes(t *testing.T) {
	t.Parallel() // it waits most of the time
	const size = 4
	ln := listen(t)
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Qs-Protocol", "1")
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for range size {
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(4 * time.Second):
			case <-r.Context().Done():
				return
			}
			w.Write([]byte{1})
		}
	}))
	c := p2p.NewClient(p2p.ClientOptions{Name: "w1", Dial: edge.New(edge.Options{}).Dial})
	defer c.Close()
	if err := c.Piece(t.Context(), p2p.Target{Addr: ln.Addr().String()}, aHash, 0, make([]byte, size)); err != nil {
		t.Error(err)
	}
}

// TestPieceConnections: 16 at a time to one address, used again.
func TestPieceConnections(t *testing.T) {
	checkLeaks(t)
	var now, most atomic.Int32
	full := make(chan struct{})
	ln := listen(t)
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n == 16 && most.Load() == 16 {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		select {
		case <-full:
		case <-r.Context().Done():
		}
		w.Header().Set("Qs-Protocol", "1")
		w.Write([]byte{1})
	}))
	var dialled atomic.Int32
	c := newClient(t, p2p.ClientOptions{Name: "w1", Dial: func(ctx context.Context, addr string, _ func(trust.Identity) error) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	errs := make(chan error)
	for i := range 100 {
		go func() { errs <- c.Piece(ctx, p2p.Target{Addr: ln.Addr().String()}, aHash, i, make([]byte, 1)) }()
	}
	for range 100 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if most.Load() != 16 || dialled.Load() > 32 {
		t.Errorf("%d requests at a time over %d connections, want 16 over about as many", most.Load(), dialled.Load())
	}
}
