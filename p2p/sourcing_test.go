package p2p

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/qs-peer/qs-peer/chunker"
)

// counted is a node's way to others' pieces, which counts what comes.
type counted struct {
	PieceClient
	mu   sync.Mutex
	from map[string]int64 // bytes, by address
}

func (c *counted) Piece(ctx context.Context, from Target, ih chunker.InfoHash, index int, buf []byte) error {
	err := c.PieceClient.Piece(ctx, from, ih, index, buf)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.from[from.Addr] += int64(len(buf))
	}
	return err
}

// outside returns what nodes received from outside their colo, in bytes.
func outside(nodes ...*node) (n int64) {
	for _, w := range nodes {
		c := w.o.Pieces.(*counted)
		c.mu.Lock()
		for _, bytes := range c.from {
			n += bytes
		}
		c.mu.Unlock()
	}
	return n
}

// sent returns what a node sent others of them.
func sent(from *node, nodes ...*node) (n int64) {
	for _, w := range nodes {
		c := w.o.Pieces.(*counted)
		c.mu.Lock()
		n += c.from[from.PeerAddr]
		c.mu.Unlock()
	}
	return n
}

func of(colo string) func(*SwarmOptions) {
	return func(o *SwarmOptions) { o.Colo = colo }
}

// TestFirstCopies: what leaves the managers is one copy, also when nobody knows of
// the others at first.
func TestFirstCopies(t *testing.T) {
	p := newPayload(t, 24<<20)
	for _, c := range []struct{ managers, workers int }{{1, 1}, {1, 5}, {3, 1}, {2, 5}} {
		t.Run(fmt.Sprintf("%d managers, %d workers", c.managers, c.workers), func(t *testing.T) {
			var managers, workers []*node
			for i := range c.managers {
				managers = append(managers, newNode(t, fmt.Sprint("manager-", i), true))
				seed(t, managers[i], p)
			}
			for i := range c.workers {
				workers = append(workers, newNode(t, fmt.Sprint("worker-", i), false))
			}
			introduce(t, append(managers, workers...)...)
			fetchAll(t, p, workers)
			size := p.torrent.Size()
			if got := outside(workers...); got < size || got > size+size/50 {
				t.Errorf("%d bytes left the managers for a snapshot of %d", got, size)
			}
			if c.workers > 1 {
				return
			}
			for _, m := range managers {
				if n := sent(m, workers...); n < size/int64(2*c.managers) {
					t.Errorf("%s sent %d bytes of %d: the managers do not share the work", m.Name, n, size)
				}
			}
		})
	}
}

// TestCopiesPerColo: each piece enters a colo once, and comes from other colos' workers
// rather than from managers, if they have it.
func TestCopiesPerColo(t *testing.T) {
	p := newPayload(t, 16<<20)
	size := p.torrent.Size()
	manager := newNode(t, "manager", true, of("core"))
	seed(t, manager, p)
	colo := func(name string) (nodes []*node) {
		for i := range 3 {
			nodes = append(nodes, newNode(t, fmt.Sprint(name, i), false, of(name)))
		}
		return nodes
	}
	a, b := colo("a"), colo("b")
	introduce(t, append(append([]*node{manager}, a...), b...)...)
	fetchAll(t, p, append(a, b...))
	for name, nodes := range map[string][]*node{"a": a, "b": b} {
		if got := outside(nodes...); got < size || got > size+size/20 {
			t.Errorf("%d bytes came into %s for a snapshot of %d", got, name, size)
		}
	}
	c := colo("c")
	introduce(t, append(append(append([]*node{manager}, a...), b...), c...)...)
	fetchAll(t, p, c)
	if got := outside(c...); got < size || got > size+size/20 {
		t.Errorf("%d bytes came into c for a snapshot of %d", got, size)
	}
	if n := sent(manager, c...); n > 0 {
		t.Errorf("the manager sent %d bytes to a colo that could get them from others", n)
	}
}

// TestOwnColoFirst: with a complete worker in the colo nobody else is asked.
func TestOwnColoFirst(t *testing.T) {
	p := newPayload(t, 8<<20)
	manager, seeder, w := newNode(t, "manager", true), newNode(t, "seeder", false), newNode(t, "worker", false)
	seed(t, manager, p)
	seed(t, seeder, p)
	introduce(t, manager, seeder, w)
	fetchAll(t, p, []*node{w})
	if got := outside(w); got > 0 {
		t.Errorf("%d bytes came from the manager", got)
	}
}

// TestSourceOrder: who may be asked is configurable.
func TestSourceOrder(t *testing.T) {
	p := newPayload(t, 4<<20)
	manager, far := newNode(t, "manager", true, of("core")), newNode(t, "far", false, of("far"))
	seed(t, manager, p)
	seed(t, far, p)
	for _, c := range []struct {
		order []Source
		want  Source
	}{
		{nil, FromOtherColos},
		{[]Source{FromManagers, FromOtherColos}, FromManagers},
		{[]Source{FromManagers}, FromManagers},
		{[]Source{FromOtherColos}, FromOtherColos},
	} {
		w := newNode(t, fmt.Sprint("worker", c.order), false, func(o *SwarmOptions) { o.Sources = c.order })
		introduce(t, manager, far, w)
		fetchAll(t, p, []*node{w})
		if got := w.Totals(); got[c.want].Bytes != p.torrent.Size() {
			t.Errorf("order %v: received %v", c.order, got)
		}
	}
}

// lame is a source that does something else than to send what it should.
func lame(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestLameSources: one of two managers is of no use; the fetch ends soon all the
// same, and what is wrong is not taken.
func TestLameSources(t *testing.T) {
	p := newPayload(t, 8<<20)
	for name, h := range map[string]http.HandlerFunc{
		"wrong bytes": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(protocolHeader, protocolVersion)
			w.Header().Set("Content-Length", fmt.Sprint(p.torrent.PieceLength()))
			w.Write(make([]byte, p.torrent.PieceLength()))
		},
		"another protocol": func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") },
		"nothing held": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(protocolHeader, protocolVersion)
			http.Error(w, "{}", http.StatusNotFound)
		},
		"cut off": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(protocolHeader, protocolVersion)
			w.Header().Set("Content-Length", fmt.Sprint(p.torrent.PieceLength()))
			w.Write(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		},
		"silent": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			manager, bad, w := newNode(t, "manager", true), newNode(t, "bad", true), newNode(t, "worker", false)
			seed(t, manager, p)
			seed(t, bad, p)
			bad.PeerAddr = lame(t, h)
			introduce(t, manager, bad, w)
			fetchAll(t, p, []*node{w})
			got, _ := w.Progress()
			if got.From[FromManagers].Bytes != p.torrent.Size() {
				t.Errorf("received %+v", got.From)
			}
			if name == "wrong bytes" && (got.Wasted == 0 || got.Wasted > 20*p.torrent.PieceLength()) {
				t.Errorf("%d bytes were wasted: want some, until the liar is shunned", got.Wasted)
			}
		})
	}
}

// TestHolderStops: a worker that leases pieces and stops fetching does not hold up the others.
func TestHolderStops(t *testing.T) {
	p := newPayload(t, 32<<20)
	manager, workers := newFleet(t, 4, slow(16<<20))
	seed(t, manager, p)
	var running []*running
	for _, w := range workers {
		running = append(running, start(t, w, p))
	}
	eventually(t, "a quarter", func() bool { return running[0].last.Load().Done > p.torrent.Size()/4 })
	running[0].cancel()
	workers[0].Close()
	for _, r := range running[1:] {
		r.wait(t)
	}
	<-running[0].done
	if err := running[0].err; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrSwarmClosed) {
		t.Error(err)
	}
	if got := outside(workers...); got > p.torrent.Size()*5/4 {
		t.Errorf("%d bytes left the manager for a snapshot of %d", got, p.torrent.Size())
	}
	for _, w := range workers[1:] {
		p.checkFile(t, w.path())
	}
}

// TestManagerLeavesAfterOneCopy: the workers have all between them.
func TestManagerLeavesAfterOneCopy(t *testing.T) {
	p := newPayload(t, 16<<20)
	manager, workers := newFleet(t, 4, slow(8<<20))
	seed(t, manager, p)
	var running []*running
	for _, w := range workers {
		running = append(running, start(t, w, p))
	}
	eventually(t, "one copy", func() bool { return outside(workers...) >= p.torrent.Size() })
	manager.Close()
	for i, r := range running {
		r.wait(t)
		p.checkFile(t, workers[i].path())
	}
}
