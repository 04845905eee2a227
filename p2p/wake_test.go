package p2p

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"
)

// TestFraming follows a stream that is read in portions of any size.
func TestFraming(t *testing.T) {
	stream := make([]byte, handshakeSize)
	var ends []int64 // where a message begins
	for _, n := range []int{0, 1, 5, 13, 1 << 18, 0, 0, 3, 1 << 14} {
		ends = append(ends, int64(len(stream)))
		stream = binary.BigEndian.AppendUint32(stream, uint32(n))
		stream = append(stream, make([]byte, n)...)
	}
	for _, seed := range []uint64{1, 2, 3, 4} {
		r := rand.New(rand.NewPCG(seed, 0))
		f := newFraming()
		for at := 0; at < len(stream); {
			n := 1 + r.IntN(min(len(stream)-at, 1<<(2*seed)))
			f.advance(stream[at : at+n])
			at += n
			for _, end := range ends {
				if int64(at) == end && (f.rest != 0 || f.n != 0) {
					t.Fatalf("seed %d: at %d, between messages, %d bytes are expected", seed, at, f.rest)
				}
			}
		}
		if f.rest != 0 || f.n != 0 {
			t.Errorf("seed %d: %d bytes are expected after the end", seed, f.rest)
		}
	}
}

// TestWaker: a reader is woken once for much, and by the end, a deadline, and the little
// that is left.
func TestWaker(t *testing.T) {
	ln := listenTCP(t)
	defer ln.Close()
	dialled := make(chan net.Conn, 1)
	go func() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Error(err)
		}
		dialled <- c
	}()
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out := <-dialled
	defer out.Close()
	w := newWaker(in, 0)
	if w.raw == nil {
		t.Fatal("a TCP connection is not the kernel's")
	}
	buf := make([]byte, 1<<20)
	read := func(want int, wantErr error) {
		t.Helper()
		if n, err := in.Read(buf); n != want || !errors.Is(err, wantErr) {
			t.Errorf("read %d bytes, %v: want %d, %v", n, err, want, wantErr)
		}
	}
	in.SetReadDeadline(time.Now().Add(10 * time.Second))
	// A little does not wake it. (A read that begins late finds it there; so try.)
	woken := 0
	for ; ; woken++ {
		w.expect(1 << 20)
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
	read(1000, nil)
	// Much does, and so does the little that is left.
	for _, n := range []int{wakeBytes, 10} {
		w.expect(int64(n))
		go func() {
			for chunk := range slices.Chunk(make([]byte, n), 1000) {
				out.Write(chunk)
			}
		}()
		for left := n; left > 0; {
			n, err := in.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
			w.expect(int64(left))
		}
	}
	w.expect(1 << 30)
	in.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	read(0, os.ErrDeadlineExceeded)
	in.SetReadDeadline(time.Now().Add(10 * time.Second))
	out.Close()
	read(0, io.EOF)
}
