package p2p_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// fakeDigests are digests that say their seq, of the entries from first to newest.
type fakeDigests struct {
	first uint64

	mu     sync.Mutex
	newest p2p.Applied
}

func (f *fakeDigests) apply(pos txlog.Pos) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.newest = p2p.Applied{Pos: pos, Digest: [32]byte{byte(pos.Seq)}}
}

func (f *fakeDigests) Newest() p2p.Applied {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.newest
}

func (f *fakeDigests) At(seq uint64) (p2p.Applied, bool) {
	newest := f.Newest()
	if seq < f.first || seq > newest.Pos.Seq {
		return p2p.Applied{}, false
	}
	return p2p.Applied{Pos: txlog.Pos{Seq: seq, Hash: txlog.Hash{1}}, Digest: [32]byte{byte(seq)}}, true
}

func TestDigestsAreAnswered(t *testing.T) {
	l := newLog(t, txlog.Options{})
	digests := &fakeDigests{first: 5}
	digests.apply(txlog.Pos{Seq: 9, Hash: txlog.Hash{1}})
	ln := listen(t)
	srv := p2p.NewServer(p2p.ServerOptions{Log: l, Digests: digests, Snapshot: noSnapshots})
	serve(t, ln, srv)
	c, to := newClient(t, p2p.ClientOptions{}), p2p.Target{Addr: ln.Addr().String()}
	for _, tt := range []struct {
		name    string
		dataset txlog.DatasetID
		seq     uint64
		want    error
	}{
		{"the oldest", dataset, 5, nil},
		{"the newest", dataset, 9, nil},
		{"any dataset", txlog.DatasetID{}, 7, nil},
		{"too old", dataset, 4, p2p.ErrNoDigest},
		{"not yet", dataset, 10, p2p.ErrNoDigest},
		{"another dataset", txlog.DatasetID{7}, 7, p2p.ErrOtherDataset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := c.Digest(t.Context(), to, tt.dataset, tt.seq)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			if tt.want == nil && (a.Pos.Seq != tt.seq || a.Digest != [32]byte{byte(tt.seq)}) {
				t.Errorf("got %+v", a)
			}
		})
	}
	for _, query := range []string{"", "seq=", "seq=-1", "seq=07", "seq=x", "seq=18446744073709551616"} {
		req, err := http.NewRequest(http.MethodGet, "http://"+to.Addr+"/p2p/v1/digest?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Qs-Protocol", "1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", query, resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A peer that answers anything else than was asked for is not believed.
func TestFalseDigests(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for name, body := range map[string]string{
		"nothing":       "",
		"no object":     "[]",
		"another entry": `{"pos":"8/` + zeros + `","digest":"` + zeros + `"}`,
		"no position":   `{"digest":"` + zeros + `"}`,
		"short":         `{"pos":"7/` + zeros + `","digest":"00"}`,
		"no digits":     `{"pos":"7/` + zeros + `","digest":"` + strings.Repeat("g", 64) + `"}`,
		"long":          strings.Repeat(" ", 2000) + `{"pos":"7/` + zeros + `","digest":"` + zeros + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Qs-Protocol", "1")
				w.Write([]byte(body))
			}))
			c := newClient(t, p2p.ClientOptions{})
			if a, err := c.Digest(t.Context(), p2p.Target{Addr: ln.Addr().String()}, dataset, 7); !errors.Is(err, p2p.ErrProtocol) {
				t.Errorf("got %+v, %v", a, err)
			}
		})
	}
}

// Digests come in a log stream to who asks for them, and as they are then.
func TestDigestsInAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		digests := &fakeDigests{}
		network := newPipes()
		serve(t, network, p2p.NewServer(p2p.ServerOptions{Log: l, Digests: digests, Snapshot: noSnapshots}))
		asks := open(t, newClient(t, p2p.ClientOptions{Digests: true, Dial: network.dial}), "peer:1", txlog.Pos{})
		quiet := open(t, newClient(t, p2p.ClientOptions{Dial: network.dial}), "peer:1", txlog.Pos{})
		pos := put(t, l, "k", "v")
		next := func(s *p2p.Stream) p2p.Part {
			t.Helper()
			p, err := s.Next(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		for range 3 {
			if p := next(asks); p.Applied != (p2p.Applied{}) {
				t.Errorf("nothing is applied yet, and %+v came", p.Applied)
			}
		}
		digests.apply(pos)
		for p := next(asks); p.Applied.Pos != pos; p = next(asks) {
		}
		for range 3 {
			if p := next(quiet); p.Applied != (p2p.Applied{}) {
				t.Errorf("nobody asked, and %+v came", p.Applied)
			}
		}
	})
}

// A digest that nobody asked for ends the stream.
func TestUnwantedDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		digests := &fakeDigests{}
		digests.apply(l.Head())
		network := newPipes()
		s := p2p.NewServer(p2p.ServerOptions{Log: l, Digests: digests, Snapshot: noSnapshots})
		serve(t, network, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.URL.RawQuery += "&digests=applied"
			s.ServeHTTP(w, r)
		}))
		c := newClient(t, p2p.ClientOptions{Dial: network.dial})
		stream, err := c.Stream(context.Background(), p2p.Target{Addr: "peer:1"}, dataset, txlog.Pos{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		for err == nil {
			_, err = stream.Next(1 << 20)
		}
		if !errors.Is(err, p2p.ErrProtocol) {
			t.Errorf("ended with %v", err)
		}
	})
}
