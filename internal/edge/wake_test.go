package edge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// TestRecords follows records that are read in portions of any size: what is said to be
// still to come comes, and is almost all of it.
func TestRecords(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4} {
		r := rand.New(rand.NewPCG(seed, 0))
		var stream []byte
		clear := []int{0} // how much the first records have in the clear
		ends := []int{0}  // where they end
		for range 200 {
			n := r.IntN(1 << r.IntN(15))
			stream = append(stream, 23, 3, 3)
			stream = binary.BigEndian.AppendUint16(stream, uint16(n+recordExtra))
			stream = append(stream, make([]byte, n+recordExtra)...)
			clear, ends = append(clear, clear[len(clear)-1]+n), append(ends, len(stream))
		}
		var got records
		whole := 0 // records that came whole, and so were returned
		for at := 0; at < len(stream); {
			n := 1 + r.IntN(min(len(stream)-at, 1<<(3*seed)))
			got.advance(stream[at : at+n])
			at += n
			for whole+1 < len(ends) && ends[whole+1] <= at {
				whole++
			}
			if ended := ends[whole] == at; ended != (got.rest == 0 && got.n == 0) {
				t.Fatalf("seed %d: at %d, of which a record ends there %v, are %+v", seed, at, ended, got)
			}
			want := r.IntN(1 + min(1<<18, clear[len(clear)-1]-clear[whole]))
			last := whole // the record in which that is complete
			for clear[last] < clear[whole]+want {
				last++
			}
			said, will := int(got.toCome(int64(want))), max(0, ends[last]-at)
			if last == whole && got.rest > 0 {
				will = ends[whole+1] - at
			}
			spare := (last-whole+1)*(len(got.header)+recordExtra) + 1<<15
			if said > will || said < will-spare {
				t.Fatalf("seed %d: at %d of which %d bytes are expected %d are said to come; it is %d", seed, at, want, said, will)
			}
		}
	}
}

// connected returns the ends of a connection between two nodes.
func connected(t *testing.T, secure bool) (ends [2]net.Conn) {
	t.Helper()
	server, client := newNode(nil), newNode(nil)
	if secure {
		_, sc, cc := fleet(t)
		server, client = newNode(sc), newNode(cc)
	}
	inner := listen(t)
	ln := server.Listen(inner, ListenOptions{Name: "test"})
	t.Cleanup(func() { ln.Close() })
	var err error
	if ends[0], err = client.Dial(t.Context(), inner.Addr().String(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ends[0].Close() })
	if ends[1], err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ends[1].Close() })
	return ends
}

// TestExpect: a reader that expects much is not woken for a little; but it is by much, by
// the last of it, by a deadline, by the end, and when nothing is expected any more.
func TestExpect(t *testing.T) {
	for _, secure := range []bool{true, false} {
		for from := range 2 {
			t.Run(fmt.Sprintf("TLS=%v/%d", secure, from), func(t *testing.T) {
				ends := connected(t, secure)
				out, in := ends[from], ends[1-from]
				below := in
				if outer, ok := in.(interface{ NetConn() net.Conn }); ok {
					below = outer.NetConn()
				}
				socket := below.(interface{ Expect(int64) })
				buf := make([]byte, 1<<20)
				// What is sent is within one record. A read that begins late finds it there; so try.
				for woken := 0; ; woken++ {
					socket.Expect(1 << 20)
					in.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
					time.AfterFunc(10*time.Millisecond, func() { out.Write(make([]byte, 1000)) })
					n, err := in.Read(buf)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						break
					}
					if n != 1000 || err != nil || woken == 100 {
						t.Fatalf("woken %d times, now for %d bytes, %v", woken, n, err)
					}
				}
				in.SetReadDeadline(time.Now().Add(10 * time.Second))
				read := func() (n int) {
					n, err := in.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					return n
				}
				read()
				socket.Expect(1 << 20)
				time.AfterFunc(10*time.Millisecond, func() { out.Write(make([]byte, 1000)) })
				time.AfterFunc(50*time.Millisecond, func() { socket.Expect(0) })
				if n := read(); n != 1000 {
					t.Errorf("when nothing is expected any more, %d bytes are read", n)
				}
				for _, size := range []int{wakeBytes, 10, 3*wakeBytes + 1, 20_000, 100_000} {
					go func() {
						for left := size; left > 0; left -= min(left, 1000) {
							out.Write(make([]byte, min(left, 1000)))
						}
					}()
					for left := size; left > 0; left -= read() {
						socket.Expect(int64(left))
					}
				}
				socket.Expect(1 << 30)
				time.AfterFunc(10*time.Millisecond, func() { out.Close() })
				if n, err := in.Read(buf); n > 0 || err != io.EOF {
					t.Errorf("at the end %d bytes are read, %v", n, err)
				}
			})
		}
	}
}
