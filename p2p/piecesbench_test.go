package p2p

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// copied makes connections to which the kernel can not send by itself, as TLS's.
type copied struct{ net.Listener }

func (l copied) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// BenchmarkOneToOne moves a file from one node to another over unshaped loopback,
// both in this process: by requests for pieces, two at a time, in the ways in which a source may
// send them, and through the torrent client, without TLS and with. The pieces are not verified; what the torrent
// client receives is, and is written.
func BenchmarkOneToOne(b *testing.B) {
	const size = 256 << 20
	report := func(b *testing.B, run func()) {
		var cpu time.Duration
		b.SetBytes(size)
		for b.Loop() {
			before := processorTime(b)
			run()
			cpu += processorTime(b) - before
		}
		b.ReportMetric(cpu.Seconds()/float64(b.N)/(size/1e9), "cpu-s/GB")
	}
	s := newStockpile(b, size)
	authority := trusttest.New(b)
	plain := newEdge(nil)
	source, asker := authority.Open(b, trust.RoleManager, "source"), authority.Open(b, trust.RoleWorker, "a1")
	for _, way := range []struct {
		name   string
		ln     net.Listener
		egress *Budget
		dial   DialFunc
	}{
		{"sendfile", listenTCP(b), nil, plain.Dial},
		{"sendfile,budget", listenTCP(b), limit(100e9), plain.Dial},
		{"copied", copied{listenTCP(b)}, nil, plain.Dial},
		{"tls", listenTLS(listenTCP(b), newEdge(source)), nil, newEdge(asker).Dial},
	} {
		_, addr := serveSource(b, way.ln, ServerOptions{Pieces: s, Egress: way.egress})
		c := NewClient(ClientOptions{Name: "a1", Dial: way.dial})
		b.Cleanup(c.Close)
		b.Run(way.name, func(b *testing.B) {
			report(b, func() {
				const parallel = 2
				errs := make(chan error)
				for first := range parallel {
					go func() {
						buf := make([]byte, s.torrent.PieceLength())
						for i := first; i < s.torrent.Pieces(); i += parallel {
							if err := c.Piece(b.Context(), Target{Addr: addr}, s.torrent.InfoHash(), i, buf[:s.torrent.PieceSize(i)]); err != nil {
								errs <- err
								return
							}
						}
						errs <- nil
					}()
				}
				for range parallel {
					if err := <-errs; err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
	for _, way := range []struct {
		name      string
		configure func(*SwarmOptions)
	}{
		{"torrent", func(o *SwarmOptions) { o.Listener, o.Dial = listenTLS(o.Listener, plain), plain.Dial }},
		{"torrent,tls", secured(b, authority, trust.RoleWorker, new(refusals))},
	} {
		b.Run(way.name, func(b *testing.B) {
			n := 0
			seeder := newNode(b, "seeder", false, way.configure)
			seed(b, seeder, s.payload)
			report(b, func() {
				b.StopTimer()
				n++
				w := newNode(b, fmt.Sprint("w", n), false, way.configure)
				introduce(b, seeder, w)
				b.StartTimer()
				if err := w.Fetch(b.Context(), s.torrent, w.path(), nil); err != nil {
					b.Error(err)
				}
				w.Close()
			})
		})
	}
}
