package p2p_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// chain returns n sealed entries of the dataset, from entry 1.
func chain(t testing.TB, n int) []txlog.Entry {
	t.Helper()
	var entries []txlog.Entry
	pos := txlog.Pos{}
	for i := range n {
		op := txlog.Op{Kind: txlog.Put, Key: []byte("key"), Value: []byte("value")}
		if i == 0 {
			op = txlog.Op{Kind: txlog.Init, Value: dataset[:]}
		}
		e, err := txlog.Seal(pos, 1, time.Unix(int64(i+1), 0), []txlog.Op{op})
		if err != nil {
			t.Fatal(err)
		}
		pos, entries = e.Pos(), append(entries, e)
	}
	return entries
}

// headOf is a head message.
func headOf(p txlog.Pos) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{'H'}, p.Seq)
	b = append(b, p.Hash[:]...)
	return binary.LittleEndian.AppendUint64(b, 0)
}

// entry is an entry message.
func entry(e txlog.Entry) []byte { return append([]byte{'E'}, e.Frame()...) }

// pack compresses what a peer sends, with a flush at the end.
func pack(t testing.TB, o []zstd.EOption, parts ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, append([]zstd.EOption{zstd.WithWindowSize(256 << 10), zstd.WithEncoderConcurrency(1)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if _, err := z.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Flush(); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(out.Bytes())
}

const okHeader = "HTTP/1.1 200 OK\r\nQs-Protocol: 1\r\nQs-Dataset: da000000000000000000000000000001\r\n"

// hang keeps a connection open until the other side closes it.
func hang(conn net.Conn) { io.Copy(io.Discard, conn) }

// body is a peer that sends an answer's header, then raw bytes, then hangs.
func body(raw ...[]byte) func(net.Conn) {
	return func(conn net.Conn) {
		io.WriteString(conn, okHeader+"\r\n")
		for _, b := range raw {
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
		hang(conn)
	}
}

// endless writes b every interval until the other side closes.
func endless(conn net.Conn, b []byte, interval time.Duration) {
	for {
		if _, err := conn.Write(b); err != nil {
			return
		}
		if interval > 0 {
			time.Sleep(interval)
		}
	}
}

// Whatever a peer does ends in an error, in bounded time.
func TestHostilePeers(t *testing.T) {
	entries := chain(t, 4)
	first, last := entries[0], entries[3]
	head := headOf(last.Pos())
	flipped := entry(entries[1])
	flipped[70] ^= 1
	other, err := txlog.Seal(txlog.Pos{}, 1, time.Unix(1, 0), []txlog.Op{{Kind: txlog.Init, Value: bytes.Repeat([]byte{7}, 16)}})
	if err != nil {
		t.Fatal(err)
	}
	length := func(n uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{'E'}, n) }
	tests := []struct {
		name string
		peer func(conn net.Conn)
		want error // nil: any
		in   time.Duration
	}{
		{"hangs", hang, nil, 10 * time.Second},
		{"closes", func(net.Conn) {}, nil, 0},
		{"speaks another protocol", func(c net.Conn) { io.WriteString(c, "220 mail.example ESMTP\r\n"); hang(c) }, p2p.ErrProtocol, 0},
		{"endless garbage", func(c net.Conn) { endless(c, bytes.Repeat([]byte{0x55}, 4096), 0) }, p2p.ErrProtocol, 0},
		{"slow header", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
			endless(c, []byte("x"), time.Second)
		}, nil, 10 * time.Second},
		{"endless headers", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			endless(c, []byte("X: "+strings.Repeat("y", 1000)+"\r\n"), 0)
		}, p2p.ErrProtocol, 0},
		{"another HTTP server", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); hang(c) }, p2p.ErrProtocol, 0},
		{"redirects", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 302 Found\r\nQs-Protocol: 1\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n")
			hang(c)
		}, p2p.ErrProtocol, 0},
		{"no dataset", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nQs-Protocol: 1\r\n\r\n"); hang(c) }, p2p.ErrProtocol, 0},
		{"another dataset", func(c net.Conn) {
			io.WriteString(c, strings.Replace(okHeader, "da00", "da01", 1)+"\r\n")
			hang(c)
		}, p2p.ErrOtherDataset, 0},
		{"gone without reason", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 410 Gone\r\nQs-Protocol: 1\r\nContent-Length: 3\r\n\r\n???")
			hang(c)
		}, p2p.ErrProtocol, 0},
		{"conflict without hashes", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 409 Conflict\r\nQs-Protocol: 1\r\nContent-Length: 2\r\n\r\n{}")
			hang(c)
		}, p2p.ErrProtocol, 0},
		{"an error that hangs", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 500 Oops\r\nQs-Protocol: 1\r\nContent-Length: 9\r\n\r\n{")
			hang(c)
		}, nil, 20 * time.Second},
		{"an endless error", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 500 Oops\r\nQs-Protocol: 1\r\n\r\n")
			endless(c, bytes.Repeat([]byte("x"), 4096), 0)
		}, p2p.ErrProtocol, 0},
		{"silent from the start", body(), p2p.ErrProtocol, 3 * time.Second},
		{"not zstd", body([]byte("hello, this is plain text")), p2p.ErrProtocol, 0},
		{"garbled zstd", body(pack(t, nil, head)[:6], bytes.Repeat([]byte{0xff}, 300)), p2p.ErrProtocol, 0},
		{"zstd with a huge window", body(pack(t, []zstd.EOption{zstd.WithWindowSize(64 << 20)}, head, bytes.Repeat(head, 100_000))), p2p.ErrProtocol, 0},
		{"endless empty frames", func(c net.Conn) {
			body()(&firstOnly{Conn: c})
			endless(c, []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, time.Millisecond)
		}, p2p.ErrProtocol, 3 * time.Second},
		{"unknown message", body(pack(t, nil, head, []byte("X"))), p2p.ErrProtocol, 0},
		{"bomb of zeros", body(pack(t, nil, make([]byte, 256<<20))), p2p.ErrProtocol, 0},
		{"no head first", body(pack(t, nil, entry(first))), p2p.ErrProtocol, 0},
		{"head behind", body(pack(t, nil, head, entry(first), entry(entries[1]), headOf(first.Pos()))), p2p.ErrProtocol, 0},
		{"head with another hash", body(pack(t, nil, head, entry(first), headOf(txlog.Pos{Seq: 1}))), p2p.ErrProtocol, 0},
		{"nothing but heads", func(c net.Conn) {
			io.WriteString(c, okHeader+"\r\n")
			z, _ := zstd.NewWriter(c, zstd.WithWindowSize(256<<10), zstd.WithEncoderConcurrency(1))
			for {
				if _, err := z.Write(head); err != nil {
					return
				}
			}
		}, p2p.ErrProtocol, 0},
		{"silent after the head", body(pack(t, nil, head)), p2p.ErrProtocol, 3 * time.Second},
		{"stops within an entry", body(pack(t, nil, head, entry(first)[:50])), p2p.ErrProtocol, 4 * time.Second},
		{"entry one byte a second", func(c net.Conn) {
			io.WriteString(c, okHeader+"\r\n")
			z, _ := zstd.NewWriter(c, zstd.WithWindowSize(256<<10), zstd.WithEncoderConcurrency(1))
			z.Write(head)
			z.Write(length(64<<20 - 4))
			for {
				if _, err := z.Write([]byte{0}); err != nil || z.Flush() != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, p2p.ErrProtocol, 520 * time.Second},
		{"truncated", func(c net.Conn) {
			io.WriteString(c, okHeader+"\r\n")
			c.Write(pack(t, nil, head, entry(first)[:50]))
		}, io.ErrUnexpectedEOF, 0},
		{"ended", func(c net.Conn) {
			io.WriteString(c, okHeader+"\r\n")
			c.Write(pack(t, nil, head))
		}, io.ErrUnexpectedEOF, 0},
		{"oversized length", body(pack(t, nil, head, length(64<<20-3))), p2p.ErrProtocol, 0},
		{"largest length", body(pack(t, nil, head, length(1<<32-1))), p2p.ErrProtocol, 0},
		{"length zero", body(pack(t, nil, head, length(0))), p2p.ErrProtocol, 0},
		{"flipped bit", body(pack(t, nil, head, entry(first), flipped)), p2p.ErrProtocol, 0},
		{"entry left out", body(pack(t, nil, head, entry(first), entry(entries[2]))), p2p.ErrProtocol, 0},
		{"entries swapped", body(pack(t, nil, head, entry(first), entry(entries[2]), entry(entries[1]))), p2p.ErrProtocol, 0},
		{"a signed head that nobody asked for", body(pack(t, nil, head, []byte("S\x02\x00x\n"))), p2p.ErrProtocol, 0},
		{"a signed head that is too long", body(pack(t, nil, head, []byte("S\x01\x10"), make([]byte, 1<<20))), p2p.ErrProtocol, 0},
		{"entry twice", body(pack(t, nil, head, entry(first), entry(first))), p2p.ErrProtocol, 0},
		{"first entry of another dataset", body(pack(t, nil, head, entry(other))), p2p.ErrProtocol, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := newPipes()
				served := make(chan struct{})
				go func() {
					defer close(served)
					conn, err := network.Accept()
					if err != nil {
						return
					}
					defer conn.Close()
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
						return
					}
					test.peer(conn)
				}()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				c := p2p.NewClient(p2p.ClientOptions{Dial: network.dial})
				begin := time.Now()
				s, err := c.Stream(context.Background(), p2p.Target{Addr: "peer:1"}, dataset, txlog.Pos{})
				if err == nil {
					for err == nil {
						_, err = s.Next(1 << 20)
					}
					s.Close()
				}
				took := time.Since(begin)
				runtime.ReadMemStats(&after)
				t.Logf("%v: %v", took, err)
				if test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("want %v", test.want)
				}
				if errors.Is(err, context.Canceled) {
					t.Error("looks as if the caller had given up")
				}
				if took > test.in+time.Second {
					t.Errorf("took %v, want about %v", took, test.in)
				}
				if mem := after.TotalAlloc - before.TotalAlloc; mem > 32<<20 {
					t.Errorf("%d MiB were allocated", mem>>20)
				}
				c.Close()
				<-served
			})
		})
	}
}

// firstOnly lets a peer write, but not wait for the end.
type firstOnly struct{ net.Conn }

func (firstOnly) Read([]byte) (int, error) { return 0, io.EOF }

// A peer that does not answer a dial costs five seconds.
func TestDialHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := p2p.NewClient(p2p.ClientOptions{Dial: func(ctx context.Context, _ string, _ func(trust.Identity) error) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		begin := time.Now()
		_, err := c.Stream(context.Background(), p2p.Target{Addr: "peer:1"}, dataset, txlog.Pos{})
		if took := time.Since(begin); err == nil || took > 6*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		t.Log(err)
	})
}

// A file that never ends in coming is given up.
func TestSlowFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newPipes()
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := network.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nQs-Protocol: 1\r\n\r\n")
			endless(conn, []byte("x"), time.Second)
		}()
		c := p2p.NewClient(p2p.ClientOptions{Dial: network.dial})
		begin := time.Now()
		_, err := c.Manifest(context.Background(), p2p.Target{Addr: "peer:1"}, chunker.InfoHash{})
		if took := time.Since(begin); err == nil || took > 61*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		t.Log(err)
		<-served
	})
}
