package peer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// pipeListener hands out one connection, without a socket, so that time can be
// virtual.
type pipeListener struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// TestHTTPStall has clients that stop in the middle: the handler must get its
// error after stallTimeout, and one that is merely slow must not.
func TestHTTPStall(t *testing.T) {
	const slow = stallTimeout - time.Second
	for _, tt := range []struct {
		name    string
		handle  func(http.ResponseWriter, *http.Request) error
		client  func(net.Conn)
		want    error
		atLeast time.Duration
		atMost  time.Duration
	}{
		{"takes nothing", sendMuch, func(c net.Conn) { request(c, "complete") }, os.ErrDeadlineExceeded, stallTimeout, stallTimeout},
		{"takes a little and stops", sendMuch, func(c net.Conn) {
			request(c, "complete")
			time.Sleep(slow)
			_, _ = io.CopyN(io.Discard, c, 3*writeChunk)
		}, os.ErrDeadlineExceeded, stallTimeout, slow + stallTimeout},
		{"takes slowly", sendMuch, func(c net.Conn) { takeEvery(c, 2*time.Second) }, nil, 28 * time.Second, 38 * time.Second},
		{"takes too slowly", sendMuch, func(c net.Conn) { takeEvery(c, slow/4) }, os.ErrDeadlineExceeded, stallTimeout, stallTimeout + 4*time.Second},
		{"sends half a body that is not read", func(w http.ResponseWriter, r *http.Request) error {
			_ = sendMuch(w, r) // whether it is cut off or answered, it ends
			return nil
		}, func(c net.Conn) {
			request(c, "half")
			_, _ = io.Copy(io.Discard, c)
		}, nil, stallTimeout, stallTimeout},
		{"sends half a body", readAll, func(c net.Conn) { request(c, "half") }, os.ErrDeadlineExceeded, stallTimeout, stallTimeout},
		{"sends slowly", readAll, func(c net.Conn) { sendEvery(c, slow/8) }, nil, slow / 8 * 8, slow / 8 * 8},
		{"sends a byte now and then", readAll, func(c net.Conn) { sendEvery(c, slow) }, os.ErrDeadlineExceeded, stallTimeout, stallTimeout},
		{"has the answer computed slowly", func(w http.ResponseWriter, r *http.Request) error {
			if err := readAll(w, r); err != nil {
				return err
			}
			select {
			case <-r.Context().Done():
				return r.Context().Err()
			case <-time.After(4 * stallTimeout):
				return nil
			}
		}, func(c net.Conn) {
			request(c, "complete")
			_, _ = io.Copy(io.Discard, c)
		}, nil, 4 * stallTimeout, 4 * stallTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				ln := &pipeListener{make(chan net.Conn, 1), make(chan struct{})}
				ln.conn <- far
				var err error
				begin, took := time.Now(), time.Duration(0)
				handled := make(chan struct{})
				reg := prometheus.NewRegistry()
				access := testAccess(reg)
				var refused []trust.Reason
				access.refused = func(_ string, why trust.Reason, _ string, _ error) { refused = append(refused, why) }
				h := (&api{access: access}).instrument(newHTTPMetrics(reg), "x", func(w *response, r *http.Request) {
					defer close(handled)
					err = tt.handle(w, r)
					took = time.Since(begin)
				})
				stop := serveHTTP(ln, h, access, slog.New(slog.DiscardHandler))
				var client sync.WaitGroup
				client.Go(func() { tt.client(near) })
				<-handled
				if !errors.Is(err, tt.want) || took < tt.atLeast || took > tt.atMost {
					t.Errorf("%v after %v; want %v after %v to %v", err, took, tt.want, tt.atLeast, tt.atMost)
				}
				near.Close()
				client.Wait()
				if err := stop(context.Background()); err != nil {
					t.Error(err)
				}
				if cutOff := tt.want != nil; cutOff != (len(refused) > 0) && tt.name != "sends half a body that is not read" || cutOff && refused[0] != tooSlow {
					t.Errorf("counted %v", refused)
				}
			})
		})
	}
}

// takeEvery asks for much and takes half of writeChunk at a time.
func takeEvery(c net.Conn, every time.Duration) {
	request(c, "complete")
	for {
		time.Sleep(every)
		if _, err := io.CopyN(io.Discard, c, writeChunk/2); err != nil {
			return
		}
	}
}

// sendEvery sends a body a byte at a time.
func sendEvery(c net.Conn, every time.Duration) {
	request(c, "")
	for range 8 {
		time.Sleep(every)
		if _, err := io.WriteString(c, "x"); err != nil {
			return
		}
	}
	_, _ = io.Copy(io.Discard, c)
}

// request sends a request whose body is 8 bytes long, as far as body goes.
func request(c net.Conn, body string) {
	_, _ = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n"+body)
}

func sendMuch(w http.ResponseWriter, _ *http.Request) error {
	_, err := w.Write(make([]byte, 8*writeChunk))
	return err
}

func readAll(_ http.ResponseWriter, r *http.Request) error {
	_, err := io.ReadAll(r.Body)
	return err
}
