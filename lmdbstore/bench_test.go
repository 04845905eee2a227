package lmdbstore

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// benchKey is a key of 16 bytes that follows no order.
func benchKey(i int) []byte {
	var k [16]byte
	binary.BigEndian.PutUint64(k[:], uint64(i)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(k[8:], uint64(i))
	return k[:]
}

// benchEntries makes entries of one put of 150 bytes, key and value.
func benchEntries(h *history, from, n int) []txlog.Entry {
	value := make([]byte, 134)
	entries := make([]txlog.Entry, n)
	for i := range entries {
		binary.BigEndian.PutUint64(value, uint64(from+i))
		entries[i] = h.entry(txlog.Op{Kind: txlog.Put, Key: benchKey(from + i), Value: value})
	}
	clear(h.model)
	return entries
}

// filled returns a store with n pairs.
func filled(b *testing.B, n int) *Store {
	h := newHistory()
	s := open(b, b.TempDir(), Options{})
	apply(b, s, h.begin())
	for at := 0; at < n; at += 8000 {
		apply(b, s, benchEntries(h, at, min(8000, n-at))...)
	}
	return s
}

// BenchmarkGet reads pairs of 150 bytes, and keys that are not there, with and
// without verifying what was found.
func BenchmarkGet(b *testing.B) {
	const n = 200_000
	s := filled(b, n)
	r := rand.New(rand.NewPCG(1, 1))
	there, absent := make([][]byte, 4096), make([][]byte, 4096)
	for i := range there {
		there[i], absent[i] = benchKey(r.IntN(n)), benchKey(n+i)
	}
	get := func(keys [][]byte, want bool) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			before := processorTime(b)
			b.RunParallel(func(p *testing.PB) {
				dst := make([]byte, 0, 1024)
				for i := r.IntN(len(keys)); p.Next(); i++ {
					if _, ok, err := s.Get(dst, keys[i%len(keys)]); ok != want || err != nil {
						b.Error(ok, err)
					}
				}
			})
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		}
	}
	for _, unchecked := range []bool{false, true} {
		s.current.Load().env.values.unchecked = unchecked
		name := "verified"
		if unchecked {
			name = "unchecked"
		}
		b.Run("there/"+name, get(there, true))
		b.Run("absent/"+name, get(absent, false))
	}
}

// BenchmarkScrub reads as fast as it goes, on all processors, by turns with and
// without a scrub at the default rate beside it, which comes first as often as last.
// lost is the part of the reads that the scrub takes. The rest says why, and others'
// load alters it less: beside-ms/MB is the processor time that a megabyte of the scrub
// takes from the reads, lost-cpu the part of the processors that this is at the rate.
// Of each the median of the pairs of turns, and of lost the worst. paced-MB/s is what the
// scrub read meanwhile. Many turns tell most: -benchtime 60x.
func BenchmarkScrub(b *testing.B) {
	const (
		n    = 500_000
		turn = 500 * time.Millisecond
	)
	s := filled(b, n)
	var rest sync.RWMutex // a scrub reads nothing while somebody holds it
	var scrubbed atomic.Int64
	scrub := ScrubOptions{fault: func(_ int64, n int) error {
		rest.RLock()
		defer rest.RUnlock()
		scrubbed.Add(int64(n))
		return nil
	}}
	reads := func() (count, busy float64) {
		ctx, cancel := context.WithTimeout(b.Context(), turn)
		defer cancel()
		var done atomic.Int64
		var wg sync.WaitGroup
		before := processorTime(b)
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				dst := make([]byte, 0, 1024)
				i := 0
				for ; ctx.Err() == nil; i++ {
					if _, ok, err := s.Get(dst, benchKey(i*7919%n)); !ok || err != nil {
						b.Error(ok, err)
					}
				}
				done.Add(int64(i))
			})
		}
		wg.Wait()
		return float64(done.Load()), (processorTime(b) - before).Seconds()
	}
	reads() // until the processor and its caches are warm
	rest.Lock()
	ctx, stop := context.WithCancel(b.Context())
	var scrubs sync.WaitGroup
	scrubs.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.Scrub(ctx, scrub); err != nil && !errors.Is(err, context.Canceled) {
				b.Error(err)
			}
		}
	})
	var lost, beside []float64
	var without float64
	for b.Loop() {
		var count, busy [2]float64 // without, with
		was := scrubbed.Load()
		for i := range 2 {
			with := (i + len(lost)) % 2
			if with == 1 {
				rest.Unlock()
			}
			count[with], busy[with] = reads()
			if with == 1 {
				rest.Lock()
			}
		}
		lost = append(lost, 1-count[1]/count[0])
		beside = append(beside, (busy[1]-busy[0]*count[1]/count[0])/float64(scrubbed.Load()-was))
		without += count[0]
	}
	rest.Unlock()
	stop()
	scrubs.Wait()
	median := func(of []float64) float64 {
		slices.Sort(of)
		return (of[(len(of)-1)/2] + of[len(of)/2]) / 2
	}
	b.ReportMetric(median(lost), "lost")
	b.ReportMetric(lost[len(lost)-1], "worst-lost")
	b.ReportMetric(median(beside)*1e9, "beside-ms/MB")
	b.ReportMetric(median(beside)*DefaultScrubRate/float64(runtime.GOMAXPROCS(0)), "lost-cpu")
	b.ReportMetric(without/float64(b.N)/turn.Seconds(), "reads/s")
	b.ReportMetric(float64(scrubbed.Load())/1e6/(float64(b.N)*turn.Seconds()), "paced-MB/s")
	busy := processorTime(b)
	fast, err := s.Scrub(b.Context(), ScrubOptions{Rate: -1})
	if err != nil {
		b.Fatal(err)
	}
	busy = processorTime(b) - busy
	perByte := busy.Seconds() / float64(fast.Bytes)
	b.ReportMetric(perByte*1e9, "cpu-ms/MB")
	b.ReportMetric(float64(fast.Bytes)/1e6/fast.Took.Seconds(), "MB/s-unpaced")
}

// BenchmarkCompare compares a store with a snapshot after a tenth of it changed.
func BenchmarkCompare(b *testing.B) {
	const n = 500_000
	log, err := txlog.Open(b.TempDir(), txlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	h, s := newHistory(), open(b, b.TempDir(), Options{})
	add := func(entries ...txlog.Entry) {
		if _, err := log.AppendEntries(entries); err != nil {
			b.Fatal(err)
		}
		apply(b, s, entries...)
	}
	add(h.begin())
	for at := 0; at < n; at += 8000 {
		add(benchEntries(h, at, min(8000, n-at))...)
	}
	file := filepath.Join(b.TempDir(), "snapshot.mdb")
	info, _ := minted(b, s, file)
	add(benchEntries(h, 0, n/10)...)
	f, err := os.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	busy, bytes := processorTime(b), int64(0)
	for b.Loop() {
		c, err := s.Compare(b.Context(), Comparing{Want: info.Pos, Size: info.Size, PieceLength: 1 << 20, Published: f, Log: log})
		if err != nil || c.Err() != nil || c.Pairs < n*8/10 {
			b.Fatal(c, err)
		}
		bytes += c.Bytes
	}
	busy = processorTime(b) - busy
	b.SetBytes(bytes / int64(b.N))
	b.ReportMetric(busy.Seconds()/float64(bytes)*1e9, "cpu-ms/MB")
}

// BenchmarkApply applies entries of new pairs, and of pairs that are there. The
// processor's time tells more than the clock's where the machine does other work.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
		pairs int // how many there are to overwrite; 0: all are new
	}{
		{"new/batch=1", 1, 0}, {"new/batch=100", 100, 0}, {"new/batch=1000", 1000, 0},
		{"overwrite/batch=1000", 1000, 200_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := newHistory()
			s := open(b, b.TempDir(), Options{})
			apply(b, s, h.begin())
			for at := 0; at < c.pairs; at += 8000 {
				apply(b, s, benchEntries(h, at, min(8000, c.pairs-at))...)
			}
			at := 0
			var busy time.Duration
			for b.Loop() {
				b.StopTimer()
				from := at
				if c.pairs > 0 {
					from = at % c.pairs
				}
				entries := benchEntries(h, from, c.batch)
				at += c.batch
				before := processorTime(b)
				b.StartTimer()
				apply(b, s, entries...)
				busy += processorTime(b) - before
			}
			b.ReportMetric(float64(at)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(busy.Nanoseconds())/float64(at), "cpu-ns/entry")
		})
	}
}

// processorTime returns what the process used so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBarePuts is the yardstick for catching up: the same puts through the
// binding alone, 1,000 a transaction.
func BenchmarkBarePuts(b *testing.B) {
	dir := b.TempDir()
	e, err := newLMDBEnv()
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	if err := e.SetMapSize(64 << 30); err != nil {
		b.Fatal(err)
	}
	if err := e.Open(dir, 0, 0o644); err != nil {
		b.Fatal(err)
	}
	value := make([]byte, 134)
	at := 0
	for b.Loop() {
		err := e.Update(func(txn *lmdbTxn) error {
			dbi, err := txn.OpenRoot(0)
			if err != nil {
				return err
			}
			for range 1000 {
				binary.BigEndian.PutUint64(value, uint64(at))
				if err := txn.Put(dbi, benchKey(at), value, 0); err != nil {
					return err
				}
				at++
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(at)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkMint mints without hashing, to nowhere, and compares with
// mdb_env_copy2's compaction of the same environment.
func BenchmarkMint(b *testing.B) {
	s := filled(b, 1_000_000)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	const compact = 1 // MDB_CP_COMPACT
	dir := b.TempDir()
	if err := copyFile(b.Context(), filepath.Join(dir, dataFile), filepath.Join(s.current.Load().dir, dataFile), nil); err != nil {
		b.Fatal(err)
	}
	same, err := newLMDBEnv()
	if err != nil {
		b.Fatal(err)
	}
	defer same.Close()
	if err := same.Open(dir, 0, 0o644); err != nil {
		b.Fatal(err)
	}
	var size int64
	var copying time.Duration
	for b.Loop() {
		info, err := s.Mint(b.Context(), func(SnapshotInfo) (io.Writer, error) { return io.Discard, nil })
		if err != nil {
			b.Fatal(err)
		}
		size = info.Size
		b.StopTimer()
		began := time.Now()
		if err := same.CopyFDFlag(null.Fd(), compact); err != nil {
			b.Fatal(err)
		}
		copying += time.Since(began)
		b.StartTimer()
	}
	b.SetBytes(size)
	b.ReportMetric(float64(copying)/float64(b.Elapsed()), "of-mdb_copy-c")
}
