package mdbfile

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/PowerDNS/lmdb-go/lmdb"
)

// The benchmarks use pairs of 150 bytes: keys of 20, values of 130.
const (
	benchPairs = 1_000_000
	benchKey   = 20
	benchValue = 130
)

// feed calls add with benchPairs pairs in key order.
func feed(add func(key, value []byte) error) error {
	key, value := make([]byte, benchKey), make([]byte, benchValue)
	for i := range uint64(benchPairs) {
		binary.BigEndian.PutUint64(key, i)
		if err := add(key, value); err != nil {
			return err
		}
	}
	return nil
}

func benchPlan(b *testing.B) *Plan {
	var p Planner
	must(b, p.DB("kv"))
	must(b, feed(func(k, v []byte) error { return p.Add(k, len(v)) }))
	plan, err := p.Plan()
	must(b, err)
	return plan
}

// benchFile writes the benchmark's environment to disk.
func benchFile(b *testing.B) (*os.File, int64) {
	plan := benchPlan(b)
	f, err := os.Create(filepath.Join(b.TempDir(), "data.mdb"))
	must(b, err)
	b.Cleanup(func() { f.Close() })
	w := NewWriter(f, plan)
	must(b, w.DB("kv"))
	must(b, feed(w.Add))
	must(b, w.Close())
	return f, plan.Size()
}

// churnedFile is the same content as LMDB leaves it behind after inserts in
// random order: half-full pages all over the file.
func churnedFile(b *testing.B) (*os.File, int64) {
	dir := b.TempDir()
	env := openLMDB(b, dir, []string{"kv"})
	defer env.Close()
	order := rand.New(rand.NewPCG(1, 1)).Perm(benchPairs)
	key, value := make([]byte, benchKey), make([]byte, benchValue)
	for len(order) > 0 {
		n := min(len(order), 100_000)
		must(b, env.Update(func(txn *lmdb.Txn) error {
			for _, i := range order[:n] {
				binary.BigEndian.PutUint64(key, uint64(i))
				if err := txn.Put(env.dbis["kv"], key, value, 0); err != nil {
					return err
				}
			}
			return nil
		}))
		order = order[n:]
	}
	f, err := os.Open(filepath.Join(dir, "data.mdb"))
	must(b, err)
	b.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	must(b, err)
	return f, fi.Size()
}

func reportPairs(b *testing.B) {
	b.ReportMetric(float64(benchPairs)*float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}

func BenchmarkPlan(b *testing.B) {
	size := benchPlan(b).Size()
	b.SetBytes(size)
	for b.Loop() {
		benchPlan(b)
	}
	reportPairs(b)
}

func BenchmarkWrite(b *testing.B) {
	plan := benchPlan(b)
	b.SetBytes(plan.Size())
	for b.Loop() {
		w := NewWriter(io.Discard, plan)
		must(b, w.DB("kv"))
		must(b, feed(w.Add))
		must(b, w.Close())
	}
	reportPairs(b)
}

func benchSources(b *testing.B, fn func(b *testing.B, f *os.File, size int64)) {
	for name, open := range map[string]func(*testing.B) (*os.File, int64){"packed": benchFile, "churned": churnedFile} {
		b.Run(name, func(b *testing.B) {
			f, size := open(b)
			b.SetBytes(size)
			fn(b, f, size)
		})
	}
}

func BenchmarkRead(b *testing.B) {
	benchSources(b, func(b *testing.B, f *os.File, size int64) {
		for b.Loop() {
			n, sum := 0, 0
			must(b, each(f, size, func(c *Cursor) error {
				v, err := c.Value()
				n, sum = n+1, sum+len(v)
				return err
			}))
			if n != benchPairs || sum != benchPairs*benchValue {
				b.Fatal(n, sum)
			}
		}
		reportPairs(b)
	})
}

func each(r io.ReaderAt, size int64, fn func(c *Cursor) error) error {
	file, err := Open(r, size)
	if err != nil {
		return err
	}
	c, err := file.Cursor("kv")
	if err != nil {
		return err
	}
	defer c.Close()
	for c.Next() {
		if err := fn(c); err != nil {
			return err
		}
	}
	return c.Err()
}

// BenchmarkMint is both passes from a file to io.Discard; bytes are those of the result.
func BenchmarkMint(b *testing.B) {
	benchSources(b, func(b *testing.B, f *os.File, size int64) {
		for b.Loop() {
			var p Planner
			must(b, p.DB("kv"))
			must(b, each(f, size, func(c *Cursor) error { return p.Add(c.Key(), c.ValueLen()) }))
			plan, err := p.Plan()
			must(b, err)
			b.SetBytes(plan.Size())
			w := NewWriter(io.Discard, plan)
			must(b, w.DB("kv"))
			must(b, each(f, size, func(c *Cursor) error {
				v, err := c.Value()
				if err != nil {
					return err
				}
				return w.Add(c.Key(), v)
			}))
			must(b, w.Close())
		}
		reportPairs(b)
	})
}

// BenchmarkCopyCompact is what LMDB itself needs for a compacted copy.
func BenchmarkCopyCompact(b *testing.B) {
	benchSources(b, func(b *testing.B, f *os.File, size int64) {
		env, err := lmdb.NewEnv()
		must(b, err)
		defer env.Close()
		must(b, env.SetMapSize(4<<30))
		must(b, env.Open(filepath.Dir(f.Name()), lmdb.Readonly, 0o600))
		for b.Loop() {
			pr, pw, err := os.Pipe()
			must(b, err)
			copied := make(chan int64)
			go func() {
				n, _ := io.Copy(io.Discard, bufio.NewReaderSize(pr, 1<<20))
				copied <- n
			}()
			must(b, env.CopyFDFlag(pw.Fd(), lmdb.CopyCompact))
			must(b, pw.Close())
			b.SetBytes(<-copied)
			must(b, pr.Close())
		}
		reportPairs(b)
	})
}

// BenchmarkAppend is the other way to a canonical file: MDB_APPEND into a fresh
// environment, without reading the source and without hashing the result.
func BenchmarkAppend(b *testing.B) {
	b.SetBytes(benchPlan(b).Size())
	for b.Loop() {
		env, err := lmdb.NewEnv()
		must(b, err)
		must(b, env.SetMaxDBs(2))
		must(b, env.SetMapSize(1<<30))
		must(b, env.Open(b.TempDir(), lmdb.WriteMap|lmdb.NoSync|lmdb.NoMetaSync, 0o600))
		must(b, env.Update(func(txn *lmdb.Txn) error {
			dbi, err := txn.OpenDBI("kv", lmdb.Create)
			if err != nil {
				return err
			}
			return feed(func(k, v []byte) error { return txn.Put(dbi, k, v, lmdb.Append) })
		}))
		must(b, env.Close())
	}
	reportPairs(b)
}

func BenchmarkCheck(b *testing.B) {
	benchSources(b, func(b *testing.B, f *os.File, size int64) {
		for b.Loop() {
			rep, err := Check(context.Background(), f, size, nil)
			must(b, err)
			if rep.DBs["kv"].Entries != benchPairs {
				b.Fatal(fmt.Sprint(rep))
			}
		}
		reportPairs(b)
	})
}
