package heads_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// These tests run the real log, the real peer protocol over sockets, and real keys.

var dataset = txlog.DatasetID{0: 0xda, 15: 1}

// relay serves a log, and heads that may be of another one.
type relay struct {
	log  *txlog.Log
	book *heads.Book
	addr string
}

func (r *relay) After(seq uint64) (p2p.SignedHead, bool) {
	h, ok := r.book.After(seq)
	return p2p.SignedHead{Pos: h.Pos, Note: h.Note}, ok
}

func (r *relay) Newest() (p2p.SignedHead, bool) {
	h := r.book.Newest()
	return p2p.SignedHead{Pos: h.Pos, Note: h.Note}, h.Note != nil
}

func (r *relay) Furthest() (p2p.SignedHead, bool) { return r.Newest() }
func (r *relay) Changed() <-chan struct{}         { return r.book.Changed() }

// serve serves a log with the heads in a book; nil: without.
func serve(t testing.TB, log *txlog.Log, book *heads.Book, witness func([]byte, string)) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{log, book, ln.Addr().String()}
	o := p2p.ServerOptions{
		Log: log, Snapshot: func(chunker.InfoHash) (_, _ []byte, _ bool) { return nil, nil, false }, Witness: witness,
	}
	if book != nil {
		o.Heads = r
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{BaseContext: func(net.Listener) context.Context { return ctx }}
	p2p.NewServer(o).Attach(srv)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	t.Cleanup(func() { cancel(); srv.Close(); <-done })
	return r
}

func openLog(t testing.TB, entries ...txlog.Entry) *txlog.Log {
	t.Helper()
	l, err := txlog.Open(filepath.Join(t.TempDir(), "log"), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if len(entries) > 0 {
		if _, err := l.AppendEntries(entries); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func openBook(t testing.TB) *heads.Book {
	t.Helper()
	b, err := heads.OpenBook(filepath.Join(t.TempDir(), "heads"), heads.BookOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func entriesOf(t testing.TB, l *txlog.Log) []txlog.Entry {
	t.Helper()
	r, err := l.Reader(txlog.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []txlog.Entry
	for uint64(len(all)) < l.Head().Seq {
		entries, err := r.Next(context.Background(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entries...)
	}
	return all
}

// written is a log of a writer that signs until the test ends.
func written(t testing.TB, keys *signingtest.Keys, log *txlog.Log) *heads.Book {
	t.Helper()
	book := openBook(t)
	w, err := heads.NewWriter(heads.WriterOptions{Log: log, Key: keys.Signer(t, "m1"), Book: book})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return book
}

func write(t testing.TB, log *txlog.Log, count, writers, size int) txlog.Pos {
	t.Helper()
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range count / writers {
				if _, err := log.Append(context.Background(), []txlog.Op{{Kind: txlog.Put, Key: []byte("key"), Value: make([]byte, size)}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return log.Head()
}

// node follows.
type node struct {
	t      testing.TB
	log    *txlog.Log
	book   *heads.Book
	guard  *heads.Guard // nil: it believes everybody
	client *p2p.Client
}

func newNode(t testing.TB, keys *signingtest.Keys, entries ...txlog.Entry) *node {
	t.Helper()
	n := &node{t: t, log: openLog(t, entries...)}
	o := p2p.ClientOptions{}
	if keys != nil {
		n.book = openBook(t)
		var err error
		n.guard, err = heads.NewGuard(heads.GuardOptions{
			Trusted: keys.Open(t), Book: n.book, Log: n.log, Evidence: filepath.Join(t.TempDir(), "evidence"),
		})
		if err != nil {
			t.Fatal(err)
		}
		o.SignedHeads, o.ShowHead = true, func() []byte { return n.guard.Furthest().Note }
	}
	n.client = p2p.NewClient(o)
	t.Cleanup(n.client.Close)
	return n
}

type source struct{ *p2p.Stream }

func (s source) Next(maxBytes int) ([]txlog.Entry, [][]byte, error) {
	p, err := s.Stream.Next(maxBytes)
	return p.Entries, p.Signed, err
}

// follow follows until the log is at a position, or ctx ends, or something is
// wrong.
func (n *node) follow(ctx context.Context, up *relay, goal uint64) error {
	open := func(ctx context.Context, after txlog.Pos) (heads.Source, error) {
		s, err := n.client.Stream(ctx, p2p.Target{Addr: up.addr}, dataset, after)
		if err != nil {
			return nil, err
		}
		return source{s}, nil
	}
	var next func() ([]txlog.Entry, error)
	if n.guard == nil {
		s, err := open(ctx, n.log.Head())
		if err != nil {
			return err
		}
		defer s.Close()
		next = func() ([]txlog.Entry, error) { entries, _, err := s.Next(4 << 20); return entries, err }
	} else {
		s, err := n.guard.Follow(ctx, "up", false, n.log.Head(), open)
		if err != nil {
			return err
		}
		defer s.Close()
		next = func() ([]txlog.Entry, error) { entries, _, err := s.Next(4 << 20); return entries, err }
	}
	for n.log.Head().Seq < goal {
		entries, err := next()
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			if _, err := n.log.AppendEntries(entries); err != nil {
				return err
			}
		}
	}
	return nil
}

func begin(t testing.TB) *txlog.Log {
	t.Helper()
	l := openLog(t)
	if _, err := l.Create(dataset); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestOverSockets: a chain of relays carries a log and its heads, from far behind and
// then as it is written.
func TestOverSockets(t *testing.T) {
	keys := signingtest.New(t, "m1")
	log := begin(t)
	write(t, log, 3000, 8, 2000)
	up := serve(t, log, written(t, keys, log), nil)
	for hop := range 3 {
		n := newNode(t, keys)
		if err := n.follow(t.Context(), up, log.Head().Seq); err != nil {
			t.Fatalf("hop %d: %v", hop, err)
		}
		if n.log.Head() != log.Head() || n.book.Len() < 10 {
			t.Errorf("hop %d: at %v, %d heads are kept", hop, n.log.Head(), n.book.Len())
		}
		pos := write(t, log, 200, 4, 100)
		ctx, cancel := context.WithCancel(t.Context())
		var relaying sync.WaitGroup
		before := up
		relaying.Go(func() { n.follow(ctx, before, 1<<60) })
		for end := time.Now().Add(20 * time.Second); n.log.Head() != pos || n.book.Newest().Pos != pos; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("hop %d: at %d of %d, the newest head is of %d", hop, n.log.Head().Seq, pos.Seq, n.book.Newest().Pos.Seq)
			}
		}
		t.Cleanup(func() { cancel(); relaying.Wait() })
		up = serve(t, n.log, n.book, nil)
	}
}

// TestLyingRelayOverSockets: a relay whose own log has an invented tail, or another
// entry somewhere, brings nobody further than what was signed.
func TestLyingRelayOverSockets(t *testing.T) {
	keys := signingtest.New(t, "m1")
	log := begin(t)
	write(t, log, 1000, 8, 1000)
	book := written(t, keys, log)
	honest := serve(t, log, book, nil)
	all := entriesOf(t, log)
	for end := time.Now().Add(20 * time.Second); book.Newest().Pos != log.Head() || book.Len() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the log is not signed")
		}
	}
	for name, c := range map[string]struct {
		from int // the first entry that is forged
		want heads.Reason
		most uint64
	}{
		"an invented tail": {len(all) + 1, heads.Uncovered, uint64(len(all))},
		"another entry":    {500, heads.Altered, 499},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forged := slices.Clone(all[:c.from-1])
			for len(forged) < len(all)+100 {
				e, err := txlog.Seal(forged[len(forged)-1].Pos(), 1, time.Now(), []txlog.Op{{Kind: txlog.Put, Key: []byte("key"), Value: []byte("forged")}})
				if err != nil {
					t.Fatal(err)
				}
				forged = append(forged, e)
			}
			n := newNode(t, keys)
			err := n.follow(t.Context(), serve(t, openLog(t, forged...), book, nil), uint64(len(forged)))
			var fault *heads.FaultError
			if !errors.As(err, &fault) || fault.Reason != c.want {
				t.Errorf("error %v, want %s", err, c.want)
			}
			if got := n.log.Head().Seq; got > c.most {
				t.Errorf("it got to entry %d; %d are true", got, c.most)
			}
			if err := n.follow(t.Context(), honest, log.Head().Seq); err != nil {
				t.Errorf("from an honest relay: %v", err)
			}
		})
	}
}

// TestTwoWritersOverSockets: two writers with one key, as when one was restored from
// a backup. Whoever has seen one and meets the other can prove it, also if the
// histories went different ways long ago.
func TestTwoWritersOverSockets(t *testing.T) {
	keys := signingtest.New(t, "m1")
	first := begin(t)
	write(t, first, 2000, 8, 4000)
	common := entriesOf(t, first)
	second := openLog(t, common...)
	write(t, first, 2000, 8, 4000)
	write(t, second, 2500, 8, 4000)
	a, b := serve(t, first, written(t, keys, first), nil), serve(t, second, written(t, keys, second), nil)
	for name, order := range map[string][2]*relay{"the shorter first": {a, b}, "the longer first": {b, a}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, keys)
			if err := n.follow(t.Context(), order[0], order[0].log.Head().Seq); err != nil {
				t.Fatal(err)
			}
			err := n.follow(t.Context(), order[1], order[1].log.Head().Seq)
			if diverged, ok := errors.AsType[*txlog.DivergedError](err); ok && diverged.Have.IsZero() {
				// Behind us: nobody but the writer is asked about that. It asks us in turn.
				return
			}
			fork, ok := errors.AsType[*heads.ForkError](err)
			if !ok {
				t.Fatalf("error %v", err)
			}
			if want := uint64(len(common)) + 1; fork.Seq != want {
				t.Errorf("found at entry %d, they differ from entry %d on", fork.Seq, want)
			}
			e, err := heads.ReadEvidence(fork.Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Check(keys.Open(t)); err != nil {
				t.Error(err)
			}
			if !e.Ours.Complete || !e.Theirs.Complete || !strings.Contains(fork.Error(), fork.Path) {
				t.Errorf("evidence %+v", fork)
			}
		})
	}
}

// TestWitnessOverSockets: who asks shows what it knows, and the one who is asked
// finds out that its own history is not the only one.
func TestWitnessOverSockets(t *testing.T) {
	keys := signingtest.New(t, "m1")
	first := begin(t)
	write(t, first, 500, 8, 100)
	second := openLog(t, entriesOf(t, first)...)
	write(t, first, 500, 8, 100)
	up := serve(t, first, written(t, keys, first), nil)
	n := newNode(t, keys)
	if err := n.follow(t.Context(), up, first.Head().Seq); err != nil {
		t.Fatal(err)
	}
	guard := func(log *txlog.Log, book *heads.Book) *heads.Guard {
		g, err := heads.NewGuard(heads.GuardOptions{
			Trusted: keys.Open(t), Book: book, Log: log, Evidence: filepath.Join(t.TempDir(), "evidence"), Writer: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	meet := func(g *heads.Guard, book *heads.Book) error {
		n.follow(t.Context(), serve(t, second, book, g.Witness), 1<<60)
		select {
		case <-g.Halted():
		default: // the caller says what is wrong with that
		}
		return g.Halt()
	}

	// Behind what was signed.
	book := written(t, keys, second)
	g := guard(second, book)
	if lost, ok := errors.AsType[*heads.LostError](meet(g, book)); !ok || lost.Signed.Seq != first.Head().Seq || lost.Head != second.Head() {
		t.Errorf("the writer that lost entries says: %v", g.Halt())
	}
	// It went on, as it would have without the follower.
	write(t, second, 1000, 8, 100)
	book = written(t, keys, second)
	for end := time.Now().Add(20 * time.Second); book.Newest().Pos != second.Head(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the log is not signed")
		}
	}
	g = guard(second, book)
	if _, ok := errors.AsType[*heads.ForkError](meet(g, book)); !ok {
		t.Errorf("the writer of the second history says: %v", g.Halt())
	}
}

// BenchmarkStream is a follower that receives, proves and appends a log. "catchup"
// is from entry 1, "live" while it is written by 64 goroutines, "lag" the time from
// an entry's fsync at the writer to that at the follower. Processor time is of both.
func BenchmarkStream(b *testing.B) {
	const count = 100_000
	type benched struct {
		log   *txlog.Log
		up    *relay
		fresh func() *node
	}
	measure := func(name string, run func(b *testing.B, x benched)) {
		for _, signed := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/signed=%v", name, signed), func(b *testing.B) {
				keys := signingtest.New(b, "m1")
				x := benched{log: begin(b), fresh: func() *node { return newNode(b, nil) }}
				var book *heads.Book
				if signed {
					book = written(b, keys, x.log)
					x.fresh = func() *node { return newNode(b, keys) }
				}
				x.up = serve(b, x.log, book, nil)
				run(b, x)
			})
		}
	}
	report := func(b *testing.B, entries int, used time.Duration) {
		b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
		b.ReportMetric(float64(used.Nanoseconds())/float64(entries), "cpu-ns/entry")
	}
	measure("catchup", func(b *testing.B, x benched) {
		pos := write(b, x.log, count, 64, 100)
		n, used := 0, processorTime(b)
		for b.Loop() {
			if err := x.fresh().follow(b.Context(), x.up, pos.Seq); err != nil {
				b.Fatal(err)
			}
			n += count
		}
		report(b, n, processorTime(b)-used)
	})
	measure("live", func(b *testing.B, x benched) {
		n, used := 0, processorTime(b)
		for b.Loop() {
			f := x.fresh()
			if err := f.log.Reset(dataset, x.log.Head()); err != nil {
				b.Fatal(err)
			}
			const some = count / 5 / 64 * 64
			goal := x.log.Head().Seq + some
			var writing sync.WaitGroup
			writing.Go(func() { write(b, x.log, some, 64, 100) })
			if err := f.follow(b.Context(), x.up, goal); err != nil {
				b.Fatal(err)
			}
			writing.Wait()
			n += some
		}
		report(b, n, processorTime(b)-used)
	})
	measure("lag", func(b *testing.B, x benched) {
		f := x.fresh()
		ctx, cancel := context.WithCancel(b.Context())
		var following sync.WaitGroup
		following.Go(func() { f.follow(ctx, x.up, 1<<60) })
		defer func() { cancel(); following.Wait() }()
		var took []time.Duration
		for b.Loop() {
			time.Sleep(30 * time.Millisecond)
			pos := write(b, x.log, 1, 1, 100)
			began := time.Now()
			for changed := f.log.Changed(); f.log.Head() != pos; changed = f.log.Changed() {
				<-changed
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
		b.ReportMetric(float64(took[len(took)*95/100].Microseconds()), "µs-p95")
	})
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
