package p2p

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

func have(i uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 5, 4}, i) }

func TestOnlyHaves(t *testing.T) {
	request := append([]byte{0, 0, 0, 13, 6}, make([]byte, 12)...)
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"one", have(7), true},
		{"two", append(have(7), have(8)...), true},
		{"then a request", append(have(7), request...), false},
		{"after a request", append(bytes.Clone(request), have(7)...), false},
		{"cut short", have(7)[:8], false},
		{"as long, but something else", append([]byte{0, 0, 0, 5, 20}, 0, 0, 0, 0), false},
		{"a keep-alive", []byte{0, 0, 0, 0}, false},
	} {
		if got := onlyHaves(c.p); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestAnnouncementsTogether writes announcements one by one and finds them sent in one
// piece: after a while, or with whatever is sent next.
func TestAnnouncementsTogether(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := newNetwork(ctx, &Swarm{})
	near, far := net.Pipe() // each Read returns what one Write wrote
	c, err := n.wrap(near, inboundAddr(1), caller{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func() []byte {
		far.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1<<10)
		k, err := far.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:k]
	}
	write := func(p []byte) {
		if k, err := c.Write(p); k != len(p) || err != nil {
			t.Fatal(k, err)
		}
	}
	began := time.Now()
	write(have(1)) // nobody reads: it would block were it sent
	write(have(2))
	if got, want := read(), append(have(1), have(2)...); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if took := time.Since(began); took < announceAfter {
		t.Errorf("sent after %v", took)
	}

	write(have(3))
	unchoke := []byte{0, 0, 0, 1, 1}
	go c.Write(unchoke)
	far.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, haveSize+len(unchoke))
	if _, err := io.ReadFull(far, got); err != nil {
		t.Fatal(err)
	}
	if want := append(have(3), unchoke...); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}

	// What is held is bounded: the last of these is not held back.
	var all []byte
	go func() {
		for i := range maxHeld/haveSize + 1 {
			c.Write(have(uint32(i)))
		}
	}()
	for i := range maxHeld/haveSize + 1 {
		all = append(all, have(uint32(i))...)
	}
	got = make([]byte, len(all))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, all) {
		t.Errorf("announcements are lost or out of order: %v", err)
	}
}
