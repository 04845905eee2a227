package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/PowerDNS/lmdb-go/lmdb"

	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// BenchmarkMint measures a canonical snapshot of 150-byte pairs, written to a
// file, hashed for the swarm and the manifest, and fsynced, with the source in
// the page cache; against mdb_env_copy2 with compaction of the same environment,
// which neither hashes nor fsyncs (x-copy), and the same followed by an fsync
// (x-copy-fsync). The keys were inserted in random order, as a store that is
// written to has them: pages are part full and neighbours far apart. x-copy-cpu
// compares processor time instead, which other work on the machine disturbs less.
func BenchmarkMint(b *testing.B) {
	dir := b.TempDir()
	store, err := lmdbstore.Open(filepath.Join(dir, "store"), lmdbstore.Options{})
	check(b, err)
	fill(b, store, scaled(2_000_000))
	check(b, store.Close())

	f := newFigures()
	for b.Loop() {
		b.StopTimer()
		before := processorTime(b)
		bare, synced := copyCompact(b, filepath.Join(dir, "store"), filepath.Join(dir, "copy.mdb"))
		copying := processorTime(b) - before

		store, err := lmdbstore.Open(filepath.Join(dir, "store"), lmdbstore.Options{})
		check(b, err)
		repoDir := filepath.Join(dir, "snapshots")
		repo, err := snapshot.Open(repoDir, snapshot.Options{})
		check(b, err)
		b.StartTimer()
		before = processorTime(b)
		began := time.Now()
		s, err := repo.Mint(b.Context(), store, nil)
		took := time.Since(began)
		b.StopTimer()
		check(b, err)
		minting := processorTime(b) - before
		f.rate("MB/s", float64(s.Manifest.Size)/1e6/took.Seconds())
		f.rate("x-copy", bare.Seconds()/took.Seconds())
		f.rate("x-copy-fsync", synced.Seconds()/took.Seconds())
		f.cost("cpu-s/GB", minting.Seconds()/float64(s.Manifest.Size)*1e9)
		f.rate("x-copy-cpu", copying.Seconds()/minting.Seconds())
		check(b, repo.Close())
		check(b, store.Close())
		check(b, os.RemoveAll(repoDir))
		b.StartTimer()
	}
	f.report(b)
}

// fill applies n pairs with keys in random order, 150 bytes each.
func fill(b *testing.B, store *lmdbstore.Store, n int) {
	b.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	var entries []txlog.Entry
	first, err := txlog.Seal(txlog.Pos{}, 1, time.Now(), []txlog.Op{{Kind: txlog.Init, Value: []byte("the bench's data")}})
	check(b, err)
	entries = append(entries, first)
	pos := first.Pos()
	for done := 0; done < n; {
		ops := make([]txlog.Op, min(1000, n-done))
		for i := range ops {
			pair := make([]byte, 150)
			binary.BigEndian.PutUint64(pair, rng.Uint64())
			binary.BigEndian.PutUint64(pair[22:], rng.Uint64())
			ops[i] = txlog.Op{Kind: txlog.Put, Key: pair[:22], Value: pair[22:]}
		}
		e, err := txlog.Seal(pos, 1, time.Now(), ops)
		check(b, err)
		pos = e.Pos()
		entries = append(entries, e)
		if done += len(ops); len(entries) >= 50 || done == n {
			check(b, store.Apply(entries))
			entries = entries[:0]
		}
	}
}

// copyCompact is the yardstick: LMDB's own compacting copy, without and with an
// fsync of the result.
func copyCompact(b *testing.B, storeDir, to string) (bare, synced time.Duration) {
	b.Helper()
	found, err := filepath.Glob(filepath.Join(storeDir, "gen-*"))
	check(b, err)
	if len(found) != 1 {
		b.Fatalf("want one generation in %s, found %v", storeDir, found)
	}
	env, err := lmdb.NewEnv()
	check(b, err)
	defer env.Close()
	check(b, env.Open(found[0], lmdb.Readonly, 0))
	f, err := os.Create(to)
	check(b, err)
	defer os.Remove(to)
	defer f.Close()
	began := time.Now()
	check(b, env.CopyFDFlag(f.Fd(), lmdb.CopyCompact))
	bare = time.Since(began)
	check(b, f.Sync())
	return bare, time.Since(began)
}
