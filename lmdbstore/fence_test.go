package lmdbstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
	"github.com/qs-peer/qs-peer/txlog"
)

// TestSeekUnderGC seeks with keys that die at once while the garbage is
// collected all the time. It shows that seek survives that, but not that seek's
// KeepAlive is what it takes: the window in which the binding holds a pointer to
// a key that nothing else keeps alive is a few instructions long, and with the
// versions in go.mod the test passes without it, too.
func TestSeekUnderGC(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	ops := make([]txlog.Op, 1000)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("key-%04d", i), "v")
	}
	apply(t, s, h.begin(), h.entry(ops...))
	stop := time.Now().Add(700 * time.Millisecond)
	var wg sync.WaitGroup
	wg.Go(func() {
		for time.Now().Before(stop) {
			runtime.GC()
		}
	})
	for range 4 {
		wg.Go(func() {
			err := s.View(func(tx *Tx) error {
				for time.Now().Before(stop) {
					c, err := tx.t.txn.OpenCursor(tx.env.kv)
					if err != nil {
						return err
					}
					// Finding nothing leaves the pointer to the key where the binding clears it.
					for range 100 {
						if k, _, err := seek(c, bytes.Repeat([]byte("z"), 500)); !isNotFound(err) {
							return fmt.Errorf("found %q, %v", k, err)
						}
					}
					c.Close()
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestNoEmptyValueReachesLMDB(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	apply(t, s, h.begin(), h.entry(put("nil", ""), txlog.Op{Kind: txlog.Put, Key: []byte("zzz"), Value: []byte{}}))
	for _, key := range []string{"nil", "zzz"} {
		err := s.View(func(tx *Tx) error {
			raw, ok, err := tx.t.get(tx.env.kv, []byte(key))
			if len(raw) != checkedLen || !ok {
				t.Errorf("LMDB holds %q, %v", raw, ok)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if v, ok, err := s.Get(nil, []byte(key)); len(v) != 0 || !ok || err != nil {
			t.Errorf("Get(%q) = %q, %v, %v", key, v, ok, err)
		}
	}
	matches(t, s, h)
}

// TestOneWriter lets many goroutines apply the same entries: each is taken once.
func TestOneWriter(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	apply(t, s, h.begin())
	var entries []txlog.Entry
	for i := range 50 {
		entries = append(entries, h.entry(put(fmt.Sprint(i), "v")))
	}
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range entries {
				if s.Apply(entries[i:i+1]) == nil {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	for at := s.State().Pos.Seq; at < h.pos.Seq; at++ { // those that every goroutine came too early for
		apply(t, s, entries[at-1])
		taken.Add(1)
	}
	if taken.Load() != int64(len(entries)) {
		t.Errorf("%d entries taken, want %d", taken.Load(), len(entries))
	}
	matches(t, s, h)
}

// TestOpenAndClose goes round from many goroutines, hence OS threads: a write
// transaction that had moved between threads would crash one of them later.
func TestOpenAndClose(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		dir := t.TempDir()
		wg.Go(func() {
			h := newHistory()
			for i := range 15 {
				s, err := Open(dir, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				entries := []txlog.Entry{}
				if i == 0 {
					entries = append(entries, h.begin())
				}
				if err := s.Apply(append(entries, h.entry(put("a", fmt.Sprint(i))))); err != nil {
					t.Error(err)
				}
				runtime.GC()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestCloseWaitsForReaders(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	apply(t, s, h.begin(), h.entry(put("a", "1")))
	inside, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.View(func(tx *Tx) error {
			close(inside)
			<-leave
			if v, ok, err := tx.Get([]byte("a")); string(v) != "1" || !ok || err != nil {
				t.Errorf("Get = %q, %v, %v", v, ok, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	isClosed := make(chan struct{})
	wg.Go(func() {
		closed(t, s)
		close(isClosed)
	})
	<-s.stopped.Done()
	select {
	case <-isClosed:
		t.Error("closed under a reader")
	default:
	}
	close(leave)
	wg.Wait()
}

// TestMoreReadersThanSlots: they wait for each other.
func TestMoreReadersThanSlots(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{MaxReaders: 3})
	apply(t, s, h.begin(), h.entry(put("a", "1")))
	var running, most atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := s.View(func(tx *Tx) error {
				n := running.Add(1)
				defer running.Add(-1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				runtime.Gosched()
				_, ok, err := tx.Get([]byte("a"))
				if !ok {
					t.Error("not found")
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 {
		t.Errorf("%d readers ran at once", most.Load())
	}
}

// TestReaderTableFull makes do with the slots that LMDB has.
func TestReaderTableFull(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxReaders: 500})
	h := newHistory()
	apply(t, s, h.begin())
	e := s.current.Load().env
	var held []*readTxn
	for { // as other processes would
		txn, err := e.ldb.Begin(flagReadonly)
		if err != nil {
			if !isReadersFull(err) {
				t.Fatal(err)
			}
			break
		}
		held = append(held, &readTxn{txn: txn})
	}
	last := held[len(held)-1]
	for _, txn := range held[:len(held)-1] {
		defer txn.txn.Abort()
	}
	e.readers.drain(nil) // so that the pool has none
	e.readers.resume()
	for full := true; full; { // what the pool gave back
		txn, err := e.ldb.Begin(flagReadonly)
		if full = err == nil; full {
			defer txn.Abort()
		}
	}
	if err := s.View(func(*Tx) error { return nil }); err == nil {
		t.Error("a view found a slot in a full table")
	}
	last.txn.Abort()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := s.View(func(*Tx) error { runtime.Gosched(); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestLastOfNothing(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	none := func() {
		t.Helper()
		for _, r := range []Range{{Reverse: true}, {}, {Reverse: true, End: []byte("z")}, {Start: []byte("a")}} {
			err := s.View(func(tx *Tx) error {
				return tx.Scan(r, func(k, _ []byte) error { return fmt.Errorf("found %q", k) })
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	none()
	apply(t, s, h.begin())
	var puts, dels []txlog.Op
	for i := range 500 {
		key := fmt.Sprintf("k%03d", i)
		puts, dels = append(puts, put(key, "v")), append(dels, del(key))
	}
	apply(t, s, h.entry(puts...))
	apply(t, s, h.entry(dels...))
	none()
	matches(t, s, h)
}

func TestNoCreateWhenReading(t *testing.T) {
	dir := t.TempDir()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e, err := calls.Open(dir, guard.Options{DBs: 2, Readers: 1})
	if err != nil {
		t.Fatal(err)
	}
	txn, err := e.Begin(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := txn.OpenDBI("other", flagCreate); err != nil {
		t.Fatal(err)
	}
	if err := txn.Commit(); err != nil {
		t.Fatal(err)
	}
	closed(t, e)
	s := open(t, t.TempDir(), Options{})
	if _, err := s.Install(t.Context(), filepath.Join(dir, dataFile), nil, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("installed an environment of somebody else: %v", err)
	}
	_, err = openEnv(dir, envOptions{maxReaders: 1, slots: 1, readonly: true, stale: &s.stale})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("opened an environment of somebody else: %v", err)
	}
}

func TestOpenOnce(t *testing.T) {
	dir := t.TempDir()
	forget, err := openOnce(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openOnce(filepath.Join(dir, "..", filepath.Base(dir))); err == nil {
		t.Error("opened twice")
	}
	forget()
	forget, err = openOnce(dir)
	if err != nil {
		t.Fatal(err)
	}
	forget()
}

func TestTxAfterItsEnd(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	var kept *Tx
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = s.View(func(tx *Tx) error { kept = tx; panic("boom") })
	}()
	_, stateErr := kept.State()
	_, pairsErr := kept.Pairs()
	_, _, getErr := kept.Get([]byte("a"))
	scanErr := kept.Scan(Range{}, func(_, _ []byte) error { return nil })
	for _, err := range []error{stateErr, pairsErr, getErr, scanErr} {
		if !errors.Is(err, errTxEnded) {
			t.Errorf("after the end: %v", err)
		}
	}
	closed(t, s) // the panic left no reader behind
}

// TestEverythingAtOnce applies, reads, scans, mints, installs and switches
// together, in a map that has to grow.
func TestEverythingAtOnce(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	s := open(t, t.TempDir(), Options{MapSize: minMapBytes, MaxReaders: 8})
	apply(t, s, h.begin())
	var wg sync.WaitGroup
	done := make(chan struct{})
	until := func(fn func() error) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := fn(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		until(func() error { _, _, err := s.Get(nil, []byte("key-1")); return err })
	}
	until(func() error {
		return s.View(func(tx *Tx) error {
			want, err := tx.Pairs()
			n := uint64(0)
			return errors.Join(err, tx.Scan(Range{Reverse: true}, func(_, _ []byte) error { n++; return nil }), func() error {
				if n != want {
					return fmt.Errorf("scanned %d of %d pairs", n, want)
				}
				return nil
			}())
		})
	})
	until(func() error {
		_, err := s.Mint(t.Context(), func(SnapshotInfo) (io.Writer, error) { return io.Discard, nil })
		return err
	})
	for i := range 12 {
		for range 5 {
			apply(t, s, h.randoms(r, 20)...)
		}
		if i%4 == 3 {
			file := filepath.Join(t.TempDir(), "snapshot.mdb")
			minted(t, s, file)
			g, err := s.Install(t.Context(), file, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			apply(t, g, h.randoms(r, 20)...)
			if err := g.Activate(); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(done)
	wg.Wait()
	matches(t, s, h)
}

// TestMapThatCannotGrow: an environment whose map is more than half full, and cannot
// grow, is not opened again with each Apply, but grows once it can.
func TestMapThatCannotGrow(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{MapSize: 4 << 20})
	e := s.current.Load().env
	e.mapMost = 4 << 20
	fill := func(n int) {
		for range n {
			apply(t, s, h.entry(put(fmt.Sprint(h.pos.Seq), strings.Repeat("v", 100_000))))
		}
	}
	apply(t, s, h.begin())
	fill(10)
	before := e.readers.current()
	fill(20)
	if n := e.readers.current() - before; n != 1 || e.mapBytes.Load() != 4<<20 {
		t.Errorf("it was opened again %d times, want 1, and has a map of %d bytes", n, e.mapBytes.Load())
	}
	e.refused, e.mapMost = e.refused.Add(-growRetry), 0
	fill(1)
	if e.mapBytes.Load() != 8<<20 {
		t.Errorf("a minute later the map has %d bytes", e.mapBytes.Load())
	}
	matches(t, s, h)
}
