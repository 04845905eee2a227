package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

var dataset = txlog.DatasetID{0: 0xda, 15: 1}

// checkLeaks fails t if it leaves goroutines.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func newLog(t testing.TB, o txlog.Options) *txlog.Log {
	t.Helper()
	l, err := txlog.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if _, err := l.Create(dataset); err != nil {
		t.Fatal(err)
	}
	return l
}

func put(t testing.TB, l *txlog.Log, key, value string) txlog.Pos {
	t.Helper()
	pos, err := l.Append(context.Background(), []txlog.Op{{Kind: txlog.Put, Key: []byte(key), Value: []byte(value)}})
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

// fill appends n small entries in few fsyncs.
func fill(t testing.TB, l *txlog.Log, n int) {
	t.Helper()
	const batch = 5000
	pos, at := l.Head(), time.Now()
	var entries []txlog.Entry
	for i := range n {
		key := fmt.Sprintf("key-%012d", i)
		e, err := txlog.Seal(pos, 1, at, []txlog.Op{{Kind: txlog.Put, Key: []byte(key), Value: []byte(fmt.Sprintf("value of %s, %041d", key, i*i))[:64]}})
		if err != nil {
			t.Fatal(err)
		}
		pos, entries = e.Pos(), append(entries, e)
		if len(entries) == batch || i == n-1 {
			if _, err := l.AppendEntries(entries); err != nil {
				t.Fatal(err)
			}
			entries = entries[:0]
		}
	}
}

// serve serves h on ln until the test ends.
func serve(t testing.TB, ln net.Listener, h http.Handler) *http.Server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		cancel()
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
	})
	return srv
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func noSnapshots(chunker.InfoHash) (_, _ []byte, _ bool) { return nil, nil, false }

func newClient(t testing.TB, o p2p.ClientOptions) *p2p.Client {
	c := p2p.NewClient(o)
	t.Cleanup(c.Close)
	return c
}

func open(t testing.TB, c *p2p.Client, addr string, after txlog.Pos) *p2p.Stream {
	t.Helper()
	s, err := c.Stream(context.Background(), p2p.Target{Addr: addr}, dataset, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// collect reads from s up to seq and returns how many entries came.
func collect(t testing.TB, s *p2p.Stream, after txlog.Pos, seq uint64) (txlog.Pos, p2p.Head) {
	t.Helper()
	var head p2p.Head
	for after.Seq < seq {
		p, err := s.Next(1 << 20)
		if err != nil {
			t.Fatalf("after entry %d: %v", after.Seq, err)
		}
		entries, h := p.Entries, p.Head
		for i := range entries {
			if entries[i].Seq != after.Seq+1 || entries[i].Prev != after.Hash {
				t.Fatalf("entry %d after %v", entries[i].Seq, after)
			}
			after = entries[i].Pos()
		}
		if h.Pos.Seq < after.Seq {
			t.Fatalf("head %d below entry %d", h.Pos.Seq, after.Seq)
		}
		head = h
	}
	return after, head
}

func TestStreamFollows(t *testing.T) {
	checkLeaks(t)
	l := newLog(t, txlog.Options{})
	fill(t, l, 2000)
	ln := listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
	c := newClient(t, p2p.ClientOptions{})
	s, err := c.Stream(context.Background(), p2p.Target{Addr: ln.Addr().String()}, txlog.DatasetID{}, txlog.Pos{}) // any dataset
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Dataset() != dataset {
		t.Errorf("dataset %v", s.Dataset())
	}
	pos, head := collect(t, s, txlog.Pos{}, l.Head().Seq)
	if pos != l.Head() || head.Pos != l.Head() || !head.Time.Equal(l.HeadTime()) {
		t.Errorf("at %v, told %v, the log ends at %v", pos, head, l.Head())
	}
	fastest := time.Hour
	for i := range 50 {
		want := put(t, l, "key", fmt.Sprint(i))
		acknowledged := time.Now()
		pos, _ = collect(t, s, pos, want.Seq)
		fastest = min(fastest, time.Since(acknowledged))
	}
	t.Logf("a new entry arrives %v after its acknowledgement, at best", fastest)
	if fastest > 20*time.Millisecond {
		t.Errorf("the fastest of 50 entries took %v: streams are not flushed", fastest)
	}
	big := put(t, l, "big", string(bytes.Repeat([]byte("0123456789abcdef"), txlog.MaxValue/16)))
	if pos, _ = collect(t, s, pos, big.Seq); pos != big {
		t.Errorf("at %v after a large entry, want %v", pos, big)
	}
}

func TestNextKeepsToItsSize(t *testing.T) {
	checkLeaks(t)
	l := newLog(t, txlog.Options{})
	fill(t, l, 3000)
	ln := listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
	s := open(t, newClient(t, p2p.ClientOptions{}), ln.Addr().String(), txlog.Pos{})
	const limit = 10_000
	for seq := uint64(0); seq < l.Head().Seq; {
		p, err := s.Next(limit)
		if err != nil {
			t.Fatal(err)
		}
		entries, size := p.Entries, 0
		for i := range entries {
			if seq++; entries[i].Seq != seq {
				t.Fatalf("entry %d, want %d", entries[i].Seq, seq)
			}
			size += len(entries[i].Frame())
		}
		if size > limit {
			t.Fatalf("%d bytes, asked for %d", size, limit)
		}
	}
	if p, err := s.Next(0); err != nil || len(p.Entries) != 0 {
		t.Errorf("a heartbeat: %d entries, %v", len(p.Entries), err)
	}
}

func TestResumeAfterACut(t *testing.T) {
	checkLeaks(t)
	l := newLog(t, txlog.Options{})
	fill(t, l, 20_000)
	ln := listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
	var conns []net.Conn
	c := newClient(t, p2p.ClientOptions{Dial: func(ctx context.Context, addr string, _ func(trust.Identity) error) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		conns = append(conns, conn)
		return conn, err
	}})
	pos := txlog.Pos{}
	cuts := 0
	for pos.Seq < l.Head().Seq {
		s := open(t, c, ln.Addr().String(), pos)
		for range 3 {
			p, err := s.Next(64 << 10)
			if err != nil {
				t.Fatal(err)
			}
			entries := p.Entries
			for i := range entries {
				if entries[i].Prev != pos.Hash || entries[i].Seq != pos.Seq+1 {
					t.Fatalf("entry %d after %d", entries[i].Seq, pos.Seq)
				}
				pos = entries[i].Pos()
			}
			if pos.Seq == l.Head().Seq {
				break
			}
		}
		conns[len(conns)-1].Close()
		for { // what was read ahead, then the cut
			p, err := s.Next(1 << 20)
			if err != nil {
				if errors.Is(err, p2p.ErrProtocol) {
					t.Errorf("a cut is not the peer's fault: %v", err)
				}
				break
			}
			for i := range p.Entries {
				pos = p.Entries[i].Pos()
			}
		}
		s.Close()
		cuts++
	}
	if cuts < 2 {
		t.Errorf("%d cuts: the test shows nothing", cuts)
	}
	if pos != l.Head() {
		t.Errorf("at %v, want %v", pos, l.Head())
	}
}

func TestRefusals(t *testing.T) {
	checkLeaks(t)
	l := newLog(t, txlog.Options{SegmentBytes: 4096})
	for range 10 {
		fill(t, l, 50)
	}
	first, err := l.Trim(300)
	if err != nil || first < 2 {
		t.Fatalf("trimmed to %d: %v", first, err)
	}
	empty, err := txlog.Open(t.TempDir(), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	ln, emptyLn := listen(t), listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
	serve(t, emptyLn, p2p.NewServer(p2p.ServerOptions{Log: empty, Snapshot: noSnapshots}))
	addr := ln.Addr().String()
	c := newClient(t, p2p.ClientOptions{})
	stream := func(addr string, d txlog.DatasetID, after txlog.Pos) error {
		s, err := c.Stream(t.Context(), p2p.Target{Addr: addr}, d, after)
		if err == nil {
			s.Close()
		}
		return err
	}
	head := l.Head()
	wrong := txlog.Pos{Seq: head.Seq, Hash: txlog.Hash{1}}
	ahead := txlog.Pos{Seq: head.Seq + 5, Hash: txlog.Hash{2}}

	var trimmed *txlog.TrimmedError
	if err := stream(addr, dataset, txlog.Pos{Seq: 1}); !errors.As(err, &trimmed) || *trimmed != (txlog.TrimmedError{Asked: 1, First: first}) {
		t.Errorf("trimmed: %v", err)
	}
	var diverged *txlog.DivergedError
	if err := stream(addr, dataset, wrong); !errors.As(err, &diverged) || *diverged != (txlog.DivergedError{Seq: head.Seq, Have: head.Hash, Want: wrong.Hash}) {
		t.Errorf("diverged: %v", err)
	}
	if err := stream(addr, dataset, ahead); !errors.As(err, &diverged) || *diverged != (txlog.DivergedError{Seq: ahead.Seq, Want: ahead.Hash}) {
		t.Errorf("ahead: %v", err)
	}
	if err := stream(addr, txlog.DatasetID{9}, head); !errors.Is(err, p2p.ErrOtherDataset) {
		t.Errorf("other dataset: %v", err)
	} else {
		t.Log(err)
	}
	if err := stream(emptyLn.Addr().String(), dataset, head); err == nil || errors.Is(err, p2p.ErrProtocol) {
		t.Errorf("empty peer: %v", err)
	} else {
		t.Log(err)
	}
	if _, err := c.Manifest(t.Context(), p2p.Target{Addr: addr}, chunker.InfoHash{1}); !errors.Is(err, p2p.ErrNotHeld) {
		t.Errorf("manifest: %v", err)
	}
	if _, err := c.Torrent(t.Context(), p2p.Target{Addr: addr}, chunker.InfoHash{1}); !errors.Is(err, p2p.ErrNotHeld) {
		t.Errorf("torrent: %v", err)
	}
	for _, path := range []string{"log?after=x", "snapshot/12/manifest", "elsewhere"} {
		req, _ := http.NewRequest("GET", "http://"+addr+"/p2p/v1/"+path, nil)
		for _, version := range []string{"", "1", "2"} {
			req.Header.Set("Qs-Protocol", version)
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode/100 != 4 {
				t.Errorf("%s with version %q: %s", path, version, resp.Status)
			}
			t.Logf("%s: %s", resp.Status, bytes.TrimSpace(body))
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestSnapshotFiles(t *testing.T) {
	checkLeaks(t)
	h, err := chunker.NewHasher("snapshot.mdb", 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Write([]byte("bytes")); err != nil {
		t.Fatal(err)
	}
	torrent, _, err := h.Finish()
	if err != nil {
		t.Fatal(err)
	}
	lie, long := chunker.InfoHash{1}, chunker.InfoHash{2}
	ln := listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: newLog(t, txlog.Options{}), Snapshot: func(h chunker.InfoHash) ([]byte, []byte, bool) {
		if h == long {
			return make([]byte, 64<<10+1), make([]byte, 16<<20+1), true
		}
		return []byte("signed"), torrent.Metainfo(), h == torrent.InfoHash() || h == lie
	}}))
	addr := ln.Addr().String()
	c := newClient(t, p2p.ClientOptions{})
	if b, err := c.Manifest(t.Context(), p2p.Target{Addr: addr}, torrent.InfoHash()); err != nil || string(b) != "signed" {
		t.Errorf("manifest %q, %v", b, err)
	}
	if got, err := c.Torrent(t.Context(), p2p.Target{Addr: addr}, torrent.InfoHash()); err != nil || got.InfoHash() != torrent.InfoHash() {
		t.Errorf("torrent %v", err)
	}
	if _, err := c.Torrent(t.Context(), p2p.Target{Addr: addr}, lie); !errors.Is(err, p2p.ErrProtocol) {
		t.Errorf("another torrent: %v", err)
	}
	if _, err := c.Manifest(t.Context(), p2p.Target{Addr: addr}, long); !errors.Is(err, p2p.ErrProtocol) {
		t.Errorf("long manifest: %v", err)
	}
	if _, err := c.Torrent(t.Context(), p2p.Target{Addr: addr}, long); !errors.Is(err, p2p.ErrProtocol) {
		t.Errorf("long torrent: %v", err)
	}
}

func TestTooManyStreams(t *testing.T) {
	checkLeaks(t)
	l := newLog(t, txlog.Options{})
	ln := listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots, MaxStreams: 2}))
	c := newClient(t, p2p.ClientOptions{})
	addr := ln.Addr().String()
	first := open(t, c, addr, txlog.Pos{})
	open(t, c, addr, txlog.Pos{})
	if _, err := c.Stream(t.Context(), p2p.Target{Addr: addr}, dataset, txlog.Pos{}); err == nil {
		t.Fatal("a third stream was opened")
	} else {
		t.Log(err)
	}
	first.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s, err := c.Stream(t.Context(), p2p.Target{Addr: addr}, dataset, txlog.Pos{})
		if err == nil {
			s.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the place of a closed stream stays taken: %v", err)
		}
	}
}

func TestEndWhileNextWaits(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(s *p2p.Stream, cancel func(), l *txlog.Log)
		want error
	}{
		"close":   {func(s *p2p.Stream, _ func(), _ *txlog.Log) { s.Close() }, net.ErrClosed},
		"context": {func(_ *p2p.Stream, cancel func(), _ *txlog.Log) { cancel() }, context.Canceled},
		"log":     {func(_ *p2p.Stream, _ func(), l *txlog.Log) { l.Close() }, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			l := newLog(t, txlog.Options{})
			ln := listen(t)
			serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
			c := newClient(t, p2p.ClientOptions{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			s, err := c.Stream(ctx, p2p.Target{Addr: ln.Addr().String()}, dataset, txlog.Pos{})
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() {
				for {
					if _, err := s.Next(1 << 20); err != nil {
						ended <- err
						return
					}
				}
			}()
			test.end(s, cancel, l)
			err = <-ended
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			s.Close()
			s.Close()
			if _, again := s.Next(1); again == nil || again.Error() != err.Error() {
				t.Errorf("the next error is another: %v", again)
			}
		})
	}
}

// pipes is a network of unbuffered pipes, for virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _ string, _ func(trust.Identity) error) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- b:
		return a, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// An idle stream brings a head within each HeartbeatInterval.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		net := newPipes()
		serve(t, net, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
		s := open(t, newClient(t, p2p.ClientOptions{Dial: net.dial}), "peer:1", txlog.Pos{})
		collect(t, s, txlog.Pos{}, 1)
		for range 20 {
			begin := time.Now()
			p, err := s.Next(1 << 20)
			if err != nil || len(p.Entries) > 0 || p.Head.Pos != l.Head() {
				t.Fatalf("%d entries, head %v, %v", len(p.Entries), p.Head, err)
			}
			if silence := time.Since(begin); silence > p2p.HeartbeatInterval {
				t.Errorf("silent for %v", silence)
			}
		}
	})
}

// A reader that pauses is no reason to end a stream, as long as the server can
// put up with it.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		fill(t, l, 50_000)
		net := newPipes()
		serve(t, net, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
		s := open(t, newClient(t, p2p.ClientOptions{Dial: net.dial}), "peer:1", txlog.Pos{})
		time.Sleep(20 * time.Second)
		if pos, _ := collect(t, s, txlog.Pos{}, l.Head().Seq); pos != l.Head() {
			t.Errorf("at %v", pos)
		}
	})
}

// However large the entries are, few bytes are read ahead of Next: of entries
// that fill the room alone, one that waits for Next and one that waits for it.
func TestReadAheadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		first := l.Head()
		for i := range 8 {
			put(t, l, fmt.Sprint(i), string(make([]byte, 2<<20)))
		}
		net := newPipes()
		serve(t, net, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
		reg := prometheus.NewRegistry()
		s := open(t, newClient(t, p2p.ClientOptions{Dial: net.dial, Registerer: reg}), "peer:1", first)
		time.Sleep(10 * time.Second)
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := -1.0
		for _, f := range families {
			if f.GetName() == "qs_p2p_stream_received_entries_total" {
				got = f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		if got < 1 || got > 2 {
			t.Errorf("%v entries of 2 MiB were read ahead", got)
		}
		if pos, _ := collect(t, s, first, l.Head().Seq); pos != l.Head() {
			t.Errorf("at %v", pos)
		}
	})
}

// A client that takes nothing is dropped.
func TestStuckClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, txlog.Options{})
		fill(t, l, 50_000)
		net := newPipes()
		var open atomic.Int32
		h := p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots})
		serve(t, net, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			open.Add(1)
			defer open.Add(-1)
			h.ServeHTTP(w, r)
		}))
		conn, err := net.dial(t.Context(), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET /p2p/v1/log?after=%v HTTP/1.1\r\nHost: x\r\nQs-Protocol: 1\r\n\r\n", txlog.Pos{})
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if open.Load() != 1 {
			t.Fatal("the stream is not open: the test shows nothing")
		}
		time.Sleep(time.Minute)
		if open.Load() != 0 {
			t.Error("a stuck client is still served after a minute")
		}
	})
}

func BenchmarkStream(b *testing.B) {
	const n = 1_000_000
	l := newLog(b, txlog.Options{})
	fill(b, l, n)
	ln := listen(b)
	serve(b, ln, p2p.NewServer(p2p.ServerOptions{Log: l, Snapshot: noSnapshots}))
	c := newClient(b, p2p.ClientOptions{})
	cpu := cpuTime(b)
	b.ResetTimer()
	for b.Loop() {
		s := open(b, c, ln.Addr().String(), txlog.Pos{})
		collect(b, s, txlog.Pos{}, n+1)
		s.Close()
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(n)/float64(b.N), "cpu-ns/entry") // both sides
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(l.Bytes())*float64(b.N)/b.Elapsed().Seconds()/1e6, "MB/s")
}

// cpuTime returns the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
