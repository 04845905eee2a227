package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/PowerDNS/lmdb-go/lmdb"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/peer"
	"github.com/qs-peer/qs-peer/txlog"
)

// smallPair returns the i-th of n pairs: 16-byte keys in random order, 64-byte
// values.
func smallPair(order []int, i int) (key, value []byte) {
	key = make([]byte, 16)
	binary.BigEndian.PutUint64(key, uint64(order[i]))
	copy(key[8:], "benchkey")
	value = make([]byte, 64)
	binary.LittleEndian.PutUint64(value, uint64(i))
	return key, value
}

// BenchmarkCatchUp measures a worker that follows the log from its first entry:
// stream over loopback, verify, append and fsync, apply and fsync, against bare
// LMDB puts of the same pairs in batches of 1,000. Both ends run in this process.
func BenchmarkCatchUp(b *testing.B) {
	n := scaled(1_000_000)
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	f := newFigures()
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		bare := barePuts(b, filepath.Join(dir, "bare"), order)

		// A manager's log of n entries, written offline.
		writer := options(filepath.Join(dir, "m"), "m", gossip.Manager)
		start(b, writer).close()
		appendEntries(b, filepath.Join(dir, "m", "log"), order)
		m := start(b, writer)
		m.applied(uint64(n) + 1)

		worker := options(filepath.Join(dir, "w"), "w", gossip.Worker)
		worker.Join = []string{m.Addrs().Gossip}
		b.StartTimer()
		began := time.Now()
		w := start(b, worker)
		w.applied(uint64(n) + 1)
		took := time.Since(began)
		b.StopTimer()

		f.rate("entries/s", float64(n)/took.Seconds())
		f.rate("bare-puts/s", float64(n)/bare.Seconds())
		f.rate("x-bare-puts", bare.Seconds()/took.Seconds())
		w.close()
		m.close()
		b.StartTimer()
	}
	f.report(b)
}

// barePuts is the yardstick: one LMDB environment, batches of 1,000 puts,
// fsynced as LMDB does by default.
func barePuts(b *testing.B, dir string, order []int) time.Duration {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	env, err := lmdb.NewEnv()
	check(b, err)
	defer env.Close()
	check(b, env.SetMapSize(8<<30))
	check(b, env.Open(dir, lmdb.NoSubdir, 0o644))
	var dbi lmdb.DBI
	check(b, env.Update(func(txn *lmdb.Txn) (err error) {
		dbi, err = txn.OpenRoot(0)
		return err
	}))
	began := time.Now()
	for i := 0; i < len(order); i += 1000 {
		check(b, env.Update(func(txn *lmdb.Txn) error {
			for j := i; j < min(i+1000, len(order)); j++ {
				key, value := smallPair(order, j)
				if err := txn.Put(dbi, key, value, 0); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return time.Since(began)
}

// appendEntries extends a stopped manager's log by one entry per pair.
func appendEntries(b *testing.B, dir string, order []int) {
	b.Helper()
	l, err := txlog.Open(dir, txlog.Options{})
	check(b, err)
	head, at := l.Head(), time.Now()
	batch := make([]txlog.Entry, 0, 10_000)
	for i := range order {
		key, value := smallPair(order, i)
		e, err := txlog.Seal(head, 1, at, []txlog.Op{{Kind: txlog.Put, Key: key, Value: value}})
		check(b, err)
		head = e.Pos()
		batch = append(batch, e)
		if len(batch) == cap(batch) || i == len(order)-1 {
			_, err := l.AppendEntries(batch)
			check(b, err)
			batch = batch[:0]
		}
	}
	check(b, l.Close())
}

// node is a peer in this process.
type node struct {
	*peer.Peer
	b    *testing.B
	name string
}

func options(data, name string, role gossip.Role) peer.Options {
	const free = "127.0.0.1:0"
	return peer.Options{Data: data, Name: name, Role: role, Colo: "bench",
		GossipAddr: free, SwarmAddr: free, PeerAddr: free, HTTPAddr: free,
		Logger: slog.New(slog.DiscardHandler)}
}

func start(b *testing.B, o peer.Options) *node {
	b.Helper()
	p, err := peer.Start(b.Context(), o)
	check(b, err)
	return &node{p, b, o.Name}
}

// applied waits until the node serves seq, as its own status says it.
func (n *node) applied(seq uint64) {
	n.b.Helper()
	self := fleet.Node{Addrs: fleet.Addrs{HTTP: n.Addrs().HTTP}}
	check(n.b, fleet.Until(n.b.Context(), 10*time.Minute, func() error {
		members, err := self.Status(n.b.Context())
		if err != nil {
			return err
		}
		if m := members[n.name]; m.State != "serving" || m.AppliedSeq < seq {
			return fmt.Errorf("%s is %s at entry %d of %d", n.name, m.State, m.AppliedSeq, seq)
		}
		return nil
	}))
}

func (n *node) close() {
	n.b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	check(n.b, n.Close(ctx))
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
