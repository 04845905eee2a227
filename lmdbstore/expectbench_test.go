package lmdbstore

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkInstall copies and opens a snapshot of some 300 MB: as it is, and
// comparing it with what it should be, its SHA-256 too.
func BenchmarkInstall(b *testing.B) {
	source := filled(b, 1_500_000)
	file := filepath.Join(b.TempDir(), dataFile)
	minted(b, source, file)
	content, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	info, err := Inspect(file)
	if err != nil {
		b.Fatal(err)
	}
	for name, want := range map[string]*Expected{"plain": nil, "compared": {SnapshotInfo: info, SHA256: sha256.Sum256(content)}} {
		b.Run(name, func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			b.SetBytes(info.Size)
			for b.Loop() {
				g, err := s.Install(b.Context(), file, want, nil)
				if err != nil {
					b.Fatal(err)
				}
				if err := g.Discard(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
