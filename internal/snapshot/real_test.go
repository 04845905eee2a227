package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// TestRealStores mints from two stores that reached one position in different
// ways, one of them from the other's earlier snapshot, and compares everything.
func TestRealStores(t *testing.T) {
	entries := realEntries(t, 400)
	one, two := realStore(t), realStore(t)
	first, second := open(t, t.TempDir(), Options{}), open(t, t.TempDir(), Options{})

	for i := range entries[:200] {
		apply(t, one, entries[i:i+1])
	}
	early, err := first.Mint(t.Context(), one, nil)
	if err != nil {
		t.Fatal(err)
	}
	fetched(t, second, early, nil)
	adopted, err := second.Adopt(t.Context(), early.Manifest.Encode(), early.Torrent)
	if err != nil {
		t.Fatal(err)
	}
	g, err := two.Install(t.Context(), adopted.Path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Apply(entries[200:]); err != nil {
		t.Fatal(err)
	}
	if err := g.Activate(); err != nil {
		t.Fatal(err)
	}
	for from := 200; from < 400; from += 50 {
		apply(t, one, entries[from:from+50])
	}

	a, err := first.Mint(t.Context(), one, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := second.Mint(t.Context(), two, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Manifest.Encode(), b.Manifest.Encode()) {
		t.Errorf("manifests differ:\n%s\n%s", a.Manifest.Encode(), b.Manifest.Encode())
	}
	if m := a.Manifest; m.Pos != entries[399].Pos() || m.Time.IsZero() || m.Format != lmdbstore.Format {
		t.Errorf("manifest\n%s", m.Encode())
	}
	for _, s := range []*Snapshot{a, b, early, adopted} {
		if err := s.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := lmdbstore.CheckFile(t.Context(), s.Path); err != nil {
			t.Error(err)
		}
	}
}

// TestCompare compares a store that goes on with a snapshot of where it was, whose file
// is verified as it is read.
func TestCompare(t *testing.T) {
	entries := realEntries(t, 1500)
	log, err := txlog.Open(filepath.Join(t.TempDir(), "log"), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.AppendEntries(entries); err != nil {
		t.Fatal(err)
	}
	s := realStore(t)
	apply(t, s, entries[:450])
	r := open(t, t.TempDir(), Options{})
	snap, err := r.Mint(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []int{450, 1100, 1500} {
		if to > 450 {
			apply(t, s, entries[s.State().Pos.Seq:to])
		}
		for _, rate := range []int64{0, 64 << 20} {
			c, err := r.Compare(t.Context(), s, snap, log, NewScrubLimit(rate))
			if err != nil || c.Err() != nil || c.Pairs+c.Since != snap.Manifest.Pairs || c.Pieces != snap.Torrent.Pieces() || (to == 450) != (c.Since == 0) {
				t.Errorf("at %d: %+v, %v", to, c, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Compare(ctx, s, snap, log, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// A bad piece of the file says nothing of the store.
	sound, err := os.ReadFile(snap.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"altered", slices.Concat(sound[:5000], []byte("altered"), sound[5007:])},
		{"cut short", sound[:len(sound)/2]},
		{"gone", nil},
	} {
		err := os.Remove(snap.Path)
		if err == nil && c.data != nil {
			err = os.WriteFile(snap.Path, c.data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		var altered *AlteredError
		if got, err := r.Compare(t.Context(), s, snap, log, nil); !errors.As(err, &altered) || errors.Is(err, lmdbstore.ErrDamaged) || got.Err() != nil || len(altered.Bad) == 0 {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	if err := s.Damage(); err != nil {
		t.Errorf("the store: %v", err)
	}
	r.Close()
	if _, err := r.Compare(t.Context(), s, snap, log, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func realEntries(t testing.TB, n int) []txlog.Entry {
	t.Helper()
	var entries []txlog.Entry
	var pos txlog.Pos
	for seq := 1; seq <= n; seq++ {
		ops := []txlog.Op{{Kind: txlog.Init, Value: bytes.Repeat([]byte{1}, 16)}}
		if seq > 1 {
			ops = []txlog.Op{
				{Kind: txlog.Put, Key: fmt.Appendf(nil, "key %d", seq*7919%1000), Value: bytes.Repeat([]byte{byte(seq)}, seq*31%3000)},
				{Kind: txlog.Delete, Key: fmt.Appendf(nil, "key %d", seq*104729%1000)},
			}
		}
		e, err := txlog.Seal(pos, 1, time.Unix(int64(seq), 0), ops)
		if err != nil {
			t.Fatal(err)
		}
		entries, pos = append(entries, e), e.Pos()
	}
	return entries
}

func realStore(t testing.TB) *lmdbstore.Store {
	t.Helper()
	s, err := lmdbstore.Open(filepath.Join(t.TempDir(), "store"), lmdbstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func apply(t testing.TB, s *lmdbstore.Store, entries []txlog.Entry) {
	t.Helper()
	if err := s.Apply(entries); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkMint mints 256 MiB that need no reading, so that writing, hashing and
// the fsync at the end are what is measured.
func BenchmarkMint(b *testing.B) {
	r, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	s := storeAt(1, 256<<20)
	b.SetBytes(int64(len(s.data)))
	for b.Loop() {
		snap, err := r.Mint(context.Background(), s, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Remove(snap.Manifest.Pos); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
