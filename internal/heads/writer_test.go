package heads

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// writing is a writer that runs.
type writing struct {
	t    *testing.T
	w    *Writer
	log  *txlog.Log
	book *Book
	stop func()
}

func startWriter(t *testing.T, log *txlog.Log, book *Book, key *signing.Signer) *writing {
	t.Helper()
	w, err := NewWriter(WriterOptions{Log: log, Book: book, Key: key, Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return &writing{t, w, log, book, stop}
}

func put(t testing.TB, l *txlog.Log, size int) txlog.Pos {
	t.Helper()
	pos, err := l.Append(context.Background(), []txlog.Op{{Kind: txlog.Put, Key: []byte("k"), Value: make([]byte, size)}})
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func created(t *testing.T, dir string) *txlog.Log {
	t.Helper()
	l := newLog(t, dir, nil)
	if _, err := l.Create(dataset); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestWriterClockJumps: after a jump back the heads go on from the times that were signed,
// so that they count, and are as old as they are.
func TestWriterClockJumps(t *testing.T) {
	k := newKeys(t, "m1")
	w := startWriter(t, created(t, t.TempDir()), newBook(t, t.TempDir()), k.signer("m1"))
	for w.book.Newest().Note == nil {
		time.Sleep(time.Millisecond)
	}
	w.stop()
	ahead := time.Now().UTC().AddDate(1, 0, 0).Round(0)
	w.w.last.Time, w.w.at = ahead, time.Time{}
	w.w.sign()
	if got := w.book.Newest().Time; !got.Equal(ahead.Add(1)) {
		t.Errorf("signed at %v after %v", got, ahead)
	}
	if age := w.book.age(); age < 0 || age > time.Hour {
		t.Errorf("it is %v old", age)
	}
}

// The writer signs at once, but not too often, and now and then when idle.
func TestWriterPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeys(t, "m1")
		l := created(t, t.TempDir())
		w := startWriter(t, l, newBook(t, t.TempDir()), k.signer("m1"))
		trusted := k.trusted("m1")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		var signed, last time.Time
		for range 10 { // idle
			before := w.book.Newest()
			<-w.book.Changed()
			h := w.book.Newest()
			if h.Pos != l.Head() || !h.Time.After(before.Time) {
				t.Errorf("idle: head %v at %v, before it %v", h.Pos, h.Time, before.Time)
			}
			if !last.IsZero() && time.Since(last) != SignInterval {
				t.Errorf("idle: signed after %v", time.Since(last))
			}
			last = time.Now()
		}
		time.Sleep(SignInterval / 2)
		pos := put(t, l, 10)
		synctest.Wait()
		if h := w.book.Newest(); h.Pos != pos {
			t.Errorf("a new entry was not signed at once: %v", h.Pos)
		}
		n := 0
		for began := time.Now(); time.Since(began) < time.Second; { // busy
			put(t, l, 10)
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if at := w.book.Newest().Time; at != signed {
				if gap := at.Sub(signed); n > 0 && gap < SignGap {
					t.Errorf("signed after %v", gap)
				}
				signed = at
				n++
			}
		}
		if n < 40 || n > 51 {
			t.Errorf("%d signatures in a second of writing", n)
		}
		h := w.book.Newest()
		if _, err := verify(trusted, h.Note, dataset); err != nil {
			t.Error(err)
		}
	})
}

// spaced checks that every range of the log is covered by a head that is kept.
func spaced(t *testing.T, l *txlog.Log, b *Book, trusted *signing.Trusted) {
	t.Helper()
	r, err := l.Reader(l.Base())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	next, _ := b.After(0)
	size := 0
	for {
		entries, err := r.Next(atOnce, 1<<20)
		if err != nil {
			return
		}
		for i := range entries {
			e := &entries[i]
			if size += len(e.Frame()); size > 2*Spacing+len(e.Frame()) {
				t.Fatalf("no head in %d bytes before entry %d; the next is of %d", size, e.Seq, next.Pos.Seq)
			}
			if e.Seq < next.Pos.Seq {
				continue
			}
			if e.Pos() != next.Pos {
				t.Fatalf("a head says %v; the entry is %v", next.Pos, e.Pos())
			}
			if _, err := verify(trusted, next.Note, dataset); err != nil {
				t.Fatal(err)
			}
			size = 0
			next, _ = b.After(e.Seq)
		}
	}
}

// A log that was written before heads were signed, or by a key that is replaced,
// is signed anew.
func TestWriterSignsWhatTheBookLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeys(t, "m1", "m2")
		l := created(t, t.TempDir())
		for range 200 {
			put(t, l, 30_000)
		}
		dir := t.TempDir()
		settle := func() {
			time.Sleep(3 * time.Second)
			synctest.Wait()
		}
		w := startWriter(t, l, newBook(t, dir), k.signer("m1"))
		settle()
		spaced(t, l, w.book, k.trusted("m1"))
		n := w.book.Len()
		for range 100 { // live
			put(t, l, 30_000)
			time.Sleep(SignGap)
		}
		settle()
		spaced(t, l, w.book, k.trusted("m1"))
		if w.book.Len() <= n {
			t.Error("nothing is kept of what is written meanwhile")
		}
		for name, change := range map[string]func() (key string){
			"a restart":                 func() string { return "m1" },
			"a restart after a loss":    func() string { w.book.file.Truncate(w.book.end / 2); return "m1" },
			"a restart with a new key":  func() string { return "m2" },
			"a restart with an old key": func() string { return "m1" },
		} {
			w.stop()
			key := change()
			w.book.Close()
			last := w.book.Newest()
			w = startWriter(t, l, newBook(t, dir), k.signer(key))
			settle()
			t.Log(name)
			spaced(t, l, w.book, k.trusted(key))
			if h := w.book.Newest(); !h.Time.After(last.Time) {
				t.Errorf("%s: the newest is of %v, before it was of %v", name, h.Time, last.Time)
			}
		}
	})
}

// A key that is replaced while the writer runs is used from then on, for all.
func TestWriterChangesItsKey(t *testing.T) {
	k := newKeys(t, "m1")
	l := created(t, t.TempDir())
	for range 40 {
		put(t, l, 30_000)
	}
	key := k.signer("m1")
	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan struct{})
	go func() { defer close(watching); key.Watch(ctx, nil) }()
	defer func() { cancel(); <-watching }()
	w := startWriter(t, l, newBook(t, t.TempDir()), key)
	before := k.trusted("m1")
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	wait("nothing is signed", func() bool { return w.book.Newest().Note != nil && w.book.Len() > 2 })
	k.replace("m1")
	after := k.trusted("m1")
	wait("the new key is not used", func() bool {
		_, err := verify(after, w.book.Newest().Note, dataset)
		return err == nil
	})
	wait("what is kept is by the old key", func() bool { return w.book.Len() > 2 })
	spaced(t, l, w.book, after)
	if h, _ := w.book.After(0); h.Note != nil {
		if _, err := verify(before, h.Note, dataset); err == nil {
			t.Error("what is kept is by the old key")
		}
	}
}

// A log that ends before what was signed must not be continued.
func TestWriterThatLostEntries(t *testing.T) {
	k := newKeys(t, "m1")
	h := history(100, 1<<30, "")
	for name, log := range map[string][]txlog.Entry{"shorter": h[:90], "another": history(100, 95, "x")} {
		b := newBook(t, t.TempDir())
		b.Add(k.sign("m1", Head{Dataset: dataset, Pos: at(h, 100), Time: time.Unix(1, 0).UTC()}), 0)
		if _, err := NewWriter(WriterOptions{Log: newLog(t, filepath.Join(t.TempDir(), name), log), Book: b, Key: k.signer("m1")}); err == nil {
			t.Errorf("%s: it goes on", name)
		}
	}
}

func BenchmarkSignAndVerify(b *testing.B) {
	k := newKeys(b, "m1")
	key, trusted := k.signer("m1"), k.trusted("m1")
	h := Head{Dataset: dataset, Pos: txlog.Pos{Seq: 1 << 40, Hash: txlog.Hash{1}}, Time: time.Now().UTC()}
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			if _, err := key.Sign(h.Encode()); err != nil {
				b.Fatal(err)
			}
		}
	})
	note := k.sign("m1", h).Note
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := verify(trusted, note, dataset); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(len(note)), "B/note")
	b.Run("book", func(b *testing.B) {
		book := newBook(b, b.TempDir())
		n := uint64(0)
		for b.Loop() {
			n++
			s := Signed{h, note}
			s.Pos.Seq = n
			book.Add(s, Spacing/16)
		}
	})
}
