package heads

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var dataset = txlog.DatasetID{0: 0xda, 15: 1}

// keys are signing keys and files that trust some of them.
type keys struct {
	t      testing.TB
	dir    string
	public map[string]string
}

func newKeys(t testing.TB, names ...string) *keys {
	k := &keys{t, t.TempDir(), map[string]string{}}
	for _, name := range names {
		k.replace(name)
	}
	return k
}

// replace makes a new key of that name.
func (k *keys) replace(name string) {
	k.t.Helper()
	secret, public, err := signing.GenerateKey(name)
	if err == nil {
		err = os.WriteFile(filepath.Join(k.dir, name), []byte(secret+"\n"), 0o600)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.public[name] = public
}

func (k *keys) signer(name string) *signing.Signer {
	k.t.Helper()
	s, err := signing.LoadSigner(filepath.Join(k.dir, name))
	if err != nil {
		k.t.Fatal(err)
	}
	return s
}

func (k *keys) trusted(names ...string) *signing.Trusted {
	k.t.Helper()
	text := ""
	for _, name := range names {
		text += k.public[name] + "\n"
	}
	path := filepath.Join(k.dir, "trusted-"+strings.Join(names, "-"))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		k.t.Fatal(err)
	}
	t, err := signing.LoadTrusted(path)
	if err != nil {
		k.t.Fatal(err)
	}
	return t
}

// sign returns a head as that key signs it.
func (k *keys) sign(name string, h Head) Signed {
	k.t.Helper()
	note, err := k.signer(name).Sign(h.Encode())
	if err != nil {
		k.t.Fatal(err)
	}
	return Signed{h, note}
}

// history makes the entries 1 to n of the dataset; salt makes another history from
// entry `from` on.
func history(n, from int, salt string) []txlog.Entry {
	h := make([]txlog.Entry, 0, n)
	var pos txlog.Pos
	for seq := 1; seq <= n; seq++ {
		ops := []txlog.Op{{Kind: txlog.Put, Key: []byte("k"), Value: fmt.Appendf(nil, "%d", seq)}}
		switch {
		case seq == 1:
			ops = []txlog.Op{{Kind: txlog.Init, Value: dataset[:]}}
		case seq >= from:
			ops[0].Value = append(ops[0].Value, salt...)
		}
		e, err := txlog.Seal(pos, 1, time.Unix(int64(seq), 0), ops)
		if err != nil {
			panic(err)
		}
		h, pos = append(h, e), e.Pos()
	}
	return h
}

// padded is a history of larger entries.
func padded(n, size int, salt string) []txlog.Entry {
	return history(n, 2, salt+strings.Repeat("x", size))
}

func at(h []txlog.Entry, seq int) txlog.Pos {
	if seq == 0 {
		return txlog.Pos{}
	}
	return h[seq-1].Pos()
}

func newLog(t testing.TB, dir string, entries []txlog.Entry) *txlog.Log {
	t.Helper()
	l, err := txlog.Open(dir, txlog.Options{})
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

func newBook(t testing.TB, dir string) *Book {
	t.Helper()
	b, err := OpenBook(dir, BookOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// alarms are what was logged at Warn and above.
type alarms struct {
	slog.Handler
	mu   sync.Mutex
	list []string
}

func (a *alarms) Enabled(context.Context, slog.Level) bool { return true }
func (a *alarms) Handle(_ context.Context, r slog.Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Level >= slog.LevelWarn {
		a.list = append(a.list, r.Message)
	}
	return nil
}

// follower is a node that believes what the keys in trusted signed.
type follower struct {
	t       *testing.T
	dir     string
	trusted *signing.Trusted
	log     *txlog.Log
	book    *Book
	guard   *Guard
	alarms  *alarms
	reg     *prometheus.Registry
}

func newFollower(t *testing.T, trusted *signing.Trusted, entries []txlog.Entry) *follower {
	t.Helper()
	f := &follower{t: t, dir: t.TempDir(), trusted: trusted, alarms: &alarms{}}
	f.log = newLog(t, filepath.Join(f.dir, "log"), entries)
	f.book = newBook(t, filepath.Join(f.dir, "heads"))
	f.restart()
	return f
}

// restart makes the node forget what is not on its disk.
func (f *follower) restart() {
	f.t.Helper()
	f.book.Close()
	f.book = newBook(f.t, filepath.Join(f.dir, "heads"))
	f.reg = prometheus.NewRegistry()
	g, err := NewGuard(GuardOptions{
		Trusted: f.trusted, Book: f.book, Log: f.log, Evidence: filepath.Join(f.dir, "evidence"),
		Logger: slog.New(f.alarms), Registerer: f.reg,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.guard = g
}

// follow follows an upstream as the replica does, until it is at a position or
// something is wrong. Only what the guard hands on gets into the log.
func (f *follower) follow(up *upstream, goal txlog.Pos) error {
	f.t.Helper()
	s, err := f.guard.Follow(f.t.Context(), up.name, up.writer, f.log.Head(), up.open)
	if err != nil {
		return err
	}
	defer s.Close()
	for met := false; !met || f.log.Head() != goal; met = true {
		entries, _, err := s.Next(1 << 20)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			if _, err := f.log.AppendEntries(entries); err != nil {
				return err
			}
		}
	}
	return nil
}

// metric returns the value of a counter or a gauge.
func (f *follower) metric(name, reason string) float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if reason != "" && m.GetLabel()[0].GetValue() != reason {
				continue
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

// upstream is another node: it sends what its script says, and then heartbeats.
type upstream struct {
	name    string
	writer  bool
	holds   []txlog.Entry // what it opens its log with
	first   int           // the first entry that it still has
	silent  bool          // no heartbeats either
	refuses error         // whatever it is asked
	// script returns what is sent to who asks for what follows a position.
	script func(after txlog.Pos) []part
	opened int
}

// part is what one Next of a source returns.
type part struct {
	entries []txlog.Entry
	notes   [][]byte
	after   time.Duration
}

// honest sends its log, and a head of each of some entries behind it.
func honest(k *keys, name string, h []txlog.Entry, signed ...int) *upstream {
	u := &upstream{name: name, holds: h}
	u.script = func(after txlog.Pos) []part {
		var parts []part
		last := int(after.Seq)
		newest := k.sign("m1", Head{Dataset: dataset, Pos: at(h, signed[len(signed)-1]), Time: time.Unix(5000, 0).UTC()})
		parts = append(parts, part{notes: [][]byte{newest.Note}})
		for _, seq := range signed {
			if seq > last {
				parts = append(parts, part{entries: h[last:seq], notes: [][]byte{k.sign("m1", Head{Dataset: dataset, Pos: at(h, seq), Time: time.Unix(4000, 0).UTC()}).Note}})
				last = seq
			}
		}
		if last < len(h) {
			parts = append(parts, part{entries: h[last:]})
		}
		return parts
	}
	return u
}

func (u *upstream) open(ctx context.Context, after txlog.Pos) (Source, error) {
	u.opened++
	switch {
	case u.refuses != nil:
		return nil, u.refuses
	case int(after.Seq)+1 < u.first:
		return nil, &txlog.TrimmedError{Asked: after.Seq, First: uint64(u.first)}
	case int(after.Seq) > len(u.holds):
		return nil, &txlog.DivergedError{Seq: after.Seq, Want: after.Hash}
	case at(u.holds, int(after.Seq)) != after:
		return nil, &txlog.DivergedError{Seq: after.Seq, Have: at(u.holds, int(after.Seq)).Hash, Want: after.Hash}
	}
	return &source{up: u, parts: u.script(after), closed: make(chan struct{})}, nil
}

type source struct {
	up     *upstream
	parts  []part
	once   sync.Once
	closed chan struct{}
}

func (s *source) Dataset() txlog.DatasetID { return dataset }

func (s *source) Next(int) ([]txlog.Entry, [][]byte, error) {
	p := part{after: 500 * time.Millisecond}
	if len(s.parts) > 0 {
		p, s.parts = s.parts[0], s.parts[1:]
	} else if s.up.silent {
		p.after = 3 * time.Second
	}
	timer := time.NewTimer(p.after)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.closed:
		return nil, nil, net.ErrClosed
	}
	if len(p.entries)+len(p.notes) == 0 && s.up.silent {
		return nil, nil, io.ErrUnexpectedEOF
	}
	return p.entries, p.notes, nil
}

func (s *source) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}
