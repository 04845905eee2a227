package lmdbstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/qs-peer/qs-peer/txlog"
)

// BenchmarkOpen opens a cleanly closed environment of about 1 GiB.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	h := newHistory()
	s := open(b, dir, Options{})
	apply(b, s, h.begin())
	value := bytes.Repeat([]byte("x"), 1000)
	ops := make([]txlog.Op, 8000)
	for at := 0; at < 680_000; at += len(ops) {
		for i := range ops {
			ops[i] = txlog.Op{Kind: txlog.Put, Key: benchKey(at + i), Value: value}
		}
		apply(b, s, h.entry(ops...))
	}
	closed(b, s)
	info, err := os.Stat(filepath.Join(dir, nameOf(1), dataFile))
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d MiB", info.Size()>>20)
	for _, v := range []Verify{VerifyQuick, VerifySampled, VerifyFull} {
		b.Run(v.String(), func(b *testing.B) {
			for b.Loop() {
				closed(b, open(b, dir, Options{Verify: v}))
			}
		})
	}
}
