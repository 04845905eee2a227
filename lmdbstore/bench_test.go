package lmdbstore

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
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

func BenchmarkGet(b *testing.B) {
	const n = 200_000
	s := filled(b, n)
	r := rand.New(rand.NewPCG(1, 1))
	keys := make([][]byte, 4096)
	for i := range keys {
		keys[i] = benchKey(r.IntN(n))
	}
	dst := make([]byte, 0, 1024)
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok, err := s.Get(dst, keys[i%len(keys)]); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			dst := make([]byte, 0, 1024)
			for i := 0; p.Next(); i++ {
				if _, ok, err := s.Get(dst, keys[i%len(keys)]); !ok || err != nil {
					b.Error(ok, err)
				}
			}
		})
	})
}

func BenchmarkApply(b *testing.B) {
	for _, batch := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			h := newHistory()
			s := open(b, b.TempDir(), Options{})
			apply(b, s, h.begin())
			at := 0
			for b.Loop() {
				b.StopTimer()
				entries := benchEntries(h, at, batch)
				at += batch
				b.StartTimer()
				apply(b, s, entries...)
			}
			b.ReportMetric(float64(at)/b.Elapsed().Seconds(), "entries/s")
		})
	}
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
		if err := s.current.Load().env.ldb.CopyFDFlag(null.Fd(), compact); err != nil {
			b.Fatal(err)
		}
		copying += time.Since(began)
		b.StartTimer()
	}
	b.SetBytes(size)
	b.ReportMetric(float64(copying)/float64(b.Elapsed()), "of-mdb_copy-c")
}
