package lmdbstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A file is opened only if everything that is said of it is true.
func TestInstallExpected(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	source := t.TempDir()
	s := open(t, source, Options{})
	apply(t, s, h.begin())
	apply(t, s, h.randoms(r, 300)...)
	closed(t, s)
	file := copyOf(t, source)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Pos != h.pos || info.Pairs == 0 || info.Size != int64(len(content)) {
		t.Fatalf("Inspect: %+v", info)
	}
	if report, err := CheckFile(t.Context(), file); err != nil || report.SnapshotInfo != info {
		t.Fatalf("CheckFile says %+v, %v, and Inspect %+v", report.SnapshotInfo, err, info)
	}
	truth := Expected{SnapshotInfo: info, SHA256: sha256.Sum256(content)}

	dir := t.TempDir()
	s = open(t, dir, Options{})
	for name, change := range map[string]func(*Expected){
		"dataset": func(e *Expected) { e.Dataset[3] ^= 1 },
		"seq":     func(e *Expected) { e.Pos.Seq++ },
		"hash":    func(e *Expected) { e.Pos.Hash[31] ^= 1 },
		"time":    func(e *Expected) { e.Time = e.Time.Add(time.Nanosecond) },
		"format":  func(e *Expected) { e.Format++ },
		"pairs":   func(e *Expected) { e.Pairs-- },
		"size":    func(e *Expected) { e.Size++ },
		"sha256":  func(e *Expected) { e.SHA256[0] ^= 1 },
	} {
		said := truth
		change(&said)
		if _, err := s.Install(t.Context(), file, &said, nil); !errors.Is(err, ErrUnexpected) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := generations(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: the generations are %v, %v", name, left, err)
		}
	}

	// A byte that is nothing's but the SHA-256's: LMDB would not mind.
	damaged := filepath.Join(t.TempDir(), dataFile)
	content[len(content)-1] ^= 1
	if err := os.WriteFile(damaged, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Install(t.Context(), damaged, &truth, nil); !errors.Is(err, ErrUnexpected) {
		t.Errorf("a damaged file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Install(ctx, file, &truth, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	var done int64
	g, err := s.Install(t.Context(), file, &truth, func(n int64) { done = n })
	if err != nil {
		t.Fatal(err)
	}
	if g.State() != truth.State || done != truth.Size {
		t.Errorf("installed %+v, progress to %d", g.State(), done)
	}
}
