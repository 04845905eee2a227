package peer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/faultfs"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// resegment gives a stopped node's log small segments, and returns their paths.
func resegment(t *testing.T, dir string) (paths []string) {
	t.Helper()
	old, err := txlog.Open(dir, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := old.Reader(old.Base())
	if err != nil {
		t.Fatal(err)
	}
	l, err := txlog.Open(dir+".new", txlog.Options{SegmentBytes: 4 << 10})
	if err == nil {
		err = l.Reset(old.Dataset(), old.Base())
	}
	for err == nil && l.Head() != old.Head() {
		var entries []txlog.Entry
		if entries, err = r.Next(t.Context(), 1<<10); err == nil {
			_, err = l.AppendEntries(entries)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		r.Close, old.Close, l.Close,
		func() error { return os.RemoveAll(dir) }, func() error { return os.Rename(dir+".new", dir) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if paths, err = filepath.Glob(filepath.Join(dir, "*.log")); err != nil {
		t.Fatal(err)
	}
	return paths
}

// mendFrom is a fleet of nodes that hold a log, and the client that asks them.
type mendFrom struct {
	replica.Fleet
	entries []txlog.Entry
	nodes   []replica.Upstream
	asked   int
}

func (f *mendFrom) Upstreams() []replica.Upstream { return f.nodes }

func (f *mendFrom) Range(_ context.Context, _ p2p.Target, _ txlog.DatasetID, after, until txlog.Pos, take func([]txlog.Entry) error) (int64, error) {
	f.asked++
	if after.Seq >= until.Seq {
		return 0, nil
	}
	return 1, take(f.entries[after.Seq:until.Seq])
}

// TestHoleIsClosedLater: a hole whose last step the disk refused is no repair, and is
// closed when the disk takes it, though nobody is in reach any more.
func TestHoleIsClosedLater(t *testing.T) {
	var dataset txlog.DatasetID
	dataset[0] = 1
	whole, err := txlog.Open("whole", txlog.Options{FS: faultfs.New()})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	at, err := whole.Create(dataset)
	for i := 0; i < 9 && err == nil; i++ {
		at, err = whole.Append(t.Context(), []txlog.Op{{Kind: txlog.Put, Key: []byte("key")}})
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := whole.Reader(txlog.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	from := &mendFrom{}
	if from.entries, err = r.Next(t.Context(), 1<<20); err != nil || len(from.entries) != 10 {
		t.Fatal(len(from.entries), err)
	}
	files := faultfs.New()
	l, err := txlog.Open("log", txlog.Options{FS: files, Repair: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, step := range []func() error{
		func() error { return l.Reset(dataset, txlog.Pos{}) },
		func() error { _, err := l.AppendEntries(from.entries[:3]); return err },
		func() error { return l.Skip(from.entries[6].Pos()) },
		func() error { _, err := l.AppendEntries(from.entries[7:]); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	node := replica.Upstream{Dataset: dataset, First: 1, Head: at}
	from.nodes = []replica.Upstream{node, node}

	m := newLogMender(slog.New(slog.DiscardHandler))
	m.fleet, m.client, m.log = from, from, l
	var told []error
	m.repaired = func(_ string, _, _ int64, err error) { told = append(told, err) }
	files.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Rename && strings.HasSuffix(op.Name, ".log") {
			return faultfs.Fault{Err: syscall.EIO}
		}
		return faultfs.Fault{}
	})
	for range 3 {
		if m.fillAll(t.Context()) || len(told) != 1 || !errors.Is(told[0], syscall.EIO) || len(l.Holes()) != 1 {
			t.Fatalf("the hole can not be closed, and the mender says %v; holes %+v", told, l.Holes())
		}
	}
	files.Inject(nil)
	from.nodes = nil
	if !m.fillAll(t.Context()) || len(told) != 2 || told[1] != nil || len(l.Holes()) != 0 || l.First() != 1 {
		t.Fatalf("told %v; holes %+v", told, l.Holes())
	}
	if from.asked != 1 {
		t.Errorf("asked %d times for what one sent", from.asked)
	}
}

// TestLogIsMended damages the log of a worker in its middle and at its end: it
// starts all the same, serves at once, and fetches what is missing, and hardly
// more, from another worker, while the writer is gone.
func TestLogIsMended(t *testing.T) {
	ca := trusttest.New(t)
	m := newNode(t, "m1", gossip.Manager).secure(ca)
	m.start()
	for range 100 {
		m.put("key", string(make([]byte, 700)))
	}
	w := startNode(t, "w1", gossip.Worker, m)
	other := startNode(t, "w2", gossip.Worker, m)
	last := m.put("last", "of all")
	w.caughtUp(last)
	other.caughtUp(last)
	w.stop()
	m.stop()

	dir := filepath.Join(w.o.Data, logDir)
	paths := resegment(t, dir)
	if len(paths) < 10 {
		t.Fatalf("%d segments", len(paths))
	}
	change := func(path string, change func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, change(b), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	flip := func(b []byte) []byte { b[200] ^= 1; return b }
	change(paths[2], func(b []byte) []byte { return b[:len(b)/2] })
	change(paths[5], flip) // is not noticed before somebody reads it
	change(paths[7], func([]byte) []byte { return nil })
	change(paths[len(paths)-1], flip)

	w.o.Join = []string{other.p.Addrs().Gossip}
	w.start()
	w.caughtUp(last)
	eventually(t, "the log is whole again", func() bool { return w.self().LogFirst == 1 })
	if _, err := w.p.parts.disk.log.Scrub(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log is whole again, as far as it was read", func() bool {
		return w.self().LogFirst == 1 && len(w.p.parts.disk.log.Holes()) == 0
	})
	wantSame(t, other, w)
	w.stop()
	rep, err := txlog.Verify(dir)
	if err != nil || rep.Base.Seq != 0 || rep.Head.Seq != last {
		t.Errorf("the log was mended, but: %+v, %v", rep, err)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*.damaged"))
	if err != nil || !slices.Contains(kept, paths[2]+".damaged") || len(kept) != 4 {
		t.Errorf("evidence: %v, %v", kept, err)
	}
}

// breaking is a connection that breaks when some bytes have come.
type breaking struct {
	net.Conn
	left *atomic.Int64 // over all connections; negative: none breaks
}

func (c *breaking) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if left := c.left.Load(); left >= 0 && c.left.Add(int64(-n)) < 0 {
		c.left.Store(0)
		c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestMendingGoesOn interrupts the repair of a log in every way, again and again: what
// arrived is not fetched a second time, but for what was on its way.
func TestMendingGoesOn(t *testing.T) {
	var dataset txlog.DatasetID
	dataset[0] = 1
	whole, err := txlog.Open(t.TempDir(), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	if _, err := whole.Create(dataset); err != nil {
		t.Fatal(err)
	}
	const entries, size = 96, 256 << 10
	noise := rand.NewChaCha8([32]byte{})
	for range entries {
		value := make([]byte, size)
		noise.Read(value)
		if _, err := whole.Append(t.Context(), []txlog.Op{{Kind: txlog.Put, Key: []byte("key"), Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	stop := servePeers(ln, p2p.NewServer(p2p.ServerOptions{
		Log: whole, Snapshot: func(chunker.InfoHash) (manifest, metainfo []byte, ok bool) { return nil, nil, false }, Logger: logger,
	}), logger)
	defer func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		stop(over)
	}()
	var left atomic.Int64
	reg := prometheus.NewRegistry()
	client := p2p.NewClient(p2p.ClientOptions{Registerer: reg, Dial: func(ctx context.Context, addr string, _ func(trust.Identity) error) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		return &breaking{c, &left}, err
	}})
	defer client.Close()

	r, err := whole.Reader(txlog.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first, err := r.Next(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	files := faultfs.New()
	o := txlog.Options{FS: files, Repair: true}
	l, err := txlog.Open("log", o)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Reset(dataset, txlog.Pos{}), func() error { _, err := l.AppendEntries(first); return err }(), l.Skip(whole.Head())); err != nil {
		t.Fatal(err)
	}
	node := replica.Upstream{Addr: ln.Addr().String(), Dataset: dataset, First: 1, Head: whole.Head()}
	from := &mendFrom{nodes: []replica.Upstream{node, node, node}}
	var fetched, mended int64
	begin := func() *logMender {
		m := newLogMender(logger)
		m.fleet, m.client, m.log = from, client, l
		m.repaired = func(_ string, f, damaged int64, err error) {
			fetched += f
			if mended += damaged; err != nil && damaged > 0 {
				t.Errorf("%d bytes were mended, but %v", damaged, err)
			}
		}
		return m
	}
	m := begin()
	interrupted := int64(0)
	for i := 0; ; i++ {
		left.Store(3 << 20)
		files.SetSpace(-1)
		switch i % 4 {
		case 1, 2: // the disk is full soon, or still
			left.Store(-1)
			files.SetSpace(1 << 20)
		case 3: // a restart
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if l, err = txlog.Open("log", o); err != nil {
				t.Fatal(err)
			}
			m = begin()
		}
		if m.fillAll(t.Context()) {
			break
		}
		interrupted++
		after := l.Holes()[0].After
		if i%4 == 1 {
			files.SetSpace(0)
			for range 5 {
				if before := received(t, reg); m.fillAll(t.Context()) || received(t, reg) != before {
					t.Fatalf("while the disk is full %d bytes more are fetched", received(t, reg)-before)
				}
			}
		}
		if l.Holes()[0].After != after {
			t.Fatalf("%+v after %+v, on a full disk", l.Holes(), after)
		}
		if i > 50 {
			t.Fatalf("it gets nowhere: %+v", l.Holes())
		}
	}
	// A batch may be on its way, read ahead as far as the client does that, and one entry.
	const onItsWay = 2 << 20
	if got := received(t, reg); interrupted < 4 || got > entries*size+interrupted*onItsWay {
		t.Errorf("interrupted %d times it fetched %d bytes for %d", interrupted, got, entries*size)
	}
	if len(l.Holes()) != 0 || l.First() != 1 {
		t.Errorf("holes %+v, first %d", l.Holes(), l.First())
	}
	// What earlier processes fetched is told by nobody.
	if fetched < mended/4 || fetched > mended+interrupted*onItsWay || mended < entries*size || mended > entries*size*101/100 {
		t.Errorf("%d bytes fetched, %d mended", fetched, mended)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestShortHoldersAreOfNoUse: a node whose log ends before what came already is passed,
// and nothing is given up for it.
func TestShortHoldersAreOfNoUse(t *testing.T) {
	m := newLogMender(slog.New(slog.DiscardHandler))
	var asked []uint64
	m.client = rangeFunc(func(after, _ txlog.Pos) error {
		asked = append(asked, after.Seq)
		return &txlog.DivergedError{Seq: after.Seq, Want: after.Hash}
	})
	l, entries := hollow(t)
	m.log, m.fleet = l, &mendFrom{nodes: []replica.Upstream{{Dataset: l.Dataset(), First: 1, Head: l.Head()}}}
	if _, err := l.Fill(entries[3:5]); err != nil {
		t.Fatal(err)
	}
	if m.fillAll(t.Context()) || !slices.Equal(asked, []uint64{5}) || l.Holes()[0].After.Seq != 5 {
		t.Errorf("asked after %d, holes %+v", asked, l.Holes())
	}
}

type rangeFunc func(after, until txlog.Pos) error

func (f rangeFunc) Range(_ context.Context, _ p2p.Target, _ txlog.DatasetID, after, until txlog.Pos, _ func([]txlog.Entry) error) (int64, error) {
	return 0, f(after, until)
}

// hollow returns a log of ten entries that lacks 4 to 7, and all of them.
func hollow(t *testing.T) (*txlog.Log, []txlog.Entry) {
	t.Helper()
	all := chain(t, 10)
	l, err := txlog.Open("log", txlog.Options{FS: faultfs.New(), Repair: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, step := range []func() error{
		func() error { _, err := l.AppendEntries(all[:3]); return err },
		func() error { return l.Skip(all[6].Pos()) },
		func() error { _, err := l.AppendEntries(all[7:]); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return l, all
}

// received is how many bytes of log streams came over the network.
func received(t *testing.T, reg *prometheus.Registry) int64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "qs_p2p_stream_received_wire_bytes_total" {
			return int64(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	return 0
}
