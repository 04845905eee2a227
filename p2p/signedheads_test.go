package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// fakeHeads are heads whose notes say their seq.
type fakeHeads struct {
	mu      sync.Mutex
	kept    []p2p.SignedHead
	newest  p2p.SignedHead
	changed chan struct{}
}

func newHeads(kept ...txlog.Pos) *fakeHeads {
	f := &fakeHeads{changed: make(chan struct{})}
	for _, pos := range kept {
		f.kept = append(f.kept, p2p.SignedHead{Pos: pos, Note: fmt.Appendf(nil, "%d", pos.Seq)})
	}
	if n := len(f.kept); n > 0 {
		f.newest = f.kept[n-1]
	}
	return f
}

func (f *fakeHeads) sign(pos txlog.Pos, note string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.newest = p2p.SignedHead{Pos: pos, Note: []byte(note)}
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeHeads) After(seq uint64) (p2p.SignedHead, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.kept {
		if h.Pos.Seq > seq {
			return h, true
		}
	}
	return f.newest, f.newest.Pos.Seq > seq
}

func (f *fakeHeads) Newest() (p2p.SignedHead, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.newest, f.newest.Note != nil
}

func (f *fakeHeads) Furthest() (p2p.SignedHead, bool) { return f.Newest() }

func (f *fakeHeads) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func position(t *testing.T, l *txlog.Log, seq uint64) txlog.Pos {
	t.Helper()
	r, err := l.Reader(txlog.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		entries, err := r.Next(t.Context(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for i := range entries {
			if entries[i].Seq == seq {
				return entries[i].Pos()
			}
		}
	}
}

// A stream that is asked for signed heads begins with the newest, brings those
// that are kept behind their entries, and new ones as soon as they are signed.
func TestSignedHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		fill(t, l, 5000)
		wrong := txlog.Pos{Seq: 2500, Hash: txlog.Hash{1}} // of another history: never sent
		heads := newHeads(position(t, l, 1000), position(t, l, 2000), wrong, position(t, l, 3000))
		heads.sign(l.Head(), "newest")
		network := newPipes()
		serve(t, network, p2p.NewServer(p2p.ServerOptions{Log: l, Heads: heads, Snapshot: noSnapshots}))
		s := open(t, newClient(t, p2p.ClientOptions{SignedHeads: true, Dial: network.dial}), "peer:1", position(t, l, 1500))
		var notes []string
		read := func(until func(p2p.Part) bool) {
			t.Helper()
			for {
				p, err := s.Next(64 << 10)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range p.Signed {
					notes = append(notes, string(n))
				}
				if until(p) {
					return
				}
			}
		}
		last := uint64(0)
		read(func(p p2p.Part) bool {
			for i := range p.Entries {
				last = p.Entries[i].Seq
			}
			return last == l.Head().Seq && len(notes) > 0 && notes[len(notes)-1] == "newest" && len(notes) > 1
		})
		if want := []string{"newest", "2000", "3000", "newest"}; !slices.Equal(notes, want) {
			t.Errorf("signed heads %q, want %q", notes, want)
		}

		notes = nil
		pos := put(t, l, "k", "v")
		read(func(p p2p.Part) bool { return len(p.Entries) == 1 })
		began := time.Now()
		heads.sign(pos, "after")
		read(func(p2p.Part) bool { return len(notes) > 0 })
		if took := time.Since(began); took > 0 || notes[0] != "after" {
			t.Errorf("%q came after %v", notes, took)
		}
		heads.sign(pos, "again") // nothing new, but a later time
		read(func(p2p.Part) bool { return len(notes) > 1 })
	})
}

// Nobody is sent what was not asked for, and who asks is not put off.
func TestSignedHeadsAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		heads := newHeads(l.Head())
		network := newPipes()
		serve(t, network, p2p.NewServer(p2p.ServerOptions{Log: l, Heads: heads, Snapshot: noSnapshots}))
		s := open(t, newClient(t, p2p.ClientOptions{Dial: network.dial}), "peer:1", txlog.Pos{})
		for range 10 {
			if p, err := s.Next(1 << 20); err != nil || len(p.Signed) > 0 {
				t.Fatalf("signed heads %q, %v", p.Signed, err)
			}
		}

		unsigned := newPipes()
		serve(t, unsigned, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
		c := newClient(t, p2p.ClientOptions{SignedHeads: true, Dial: unsigned.dial})
		if _, err := c.Stream(context.Background(), p2p.Target{Addr: "peer:1"}, dataset, txlog.Pos{}); !errors.Is(err, p2p.ErrUnsigned) {
			t.Errorf("a peer without signed heads: %v", err)
		}
	})
}
