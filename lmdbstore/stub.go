package lmdbstore

import (
	"context"
	"io"
)

// SnapshotInfo says what a minted file is.
type SnapshotInfo struct {
	State
	Pairs  uint64 // of the user
	Size   int64  // bytes
	Format int
}

// Mint writes a canonical snapshot of the current generation. It calls begin
// once the result has been measured, and then writes exactly Size bytes, front
// to back, to the writer that begin returns. If the environment had to be
// remapped meanwhile begin is called again and the writing starts over.
// Writes to the store go on. Damage that it comes across is ErrDamaged.
func (s *Store) Mint(ctx context.Context, begin func(SnapshotInfo) (io.Writer, error)) (SnapshotInfo, error) {
	panic("unwritten")
}

// CheckReport is what Check and CheckFile found.
type CheckReport struct {
	SnapshotInfo
	Pages     uint64 // in the file
	FreePages uint64 // listed as reusable
}

// Check verifies the structure of the current generation of the store in dir,
// which no process has open: every page reachable once, in bounds, in key
// order, counts as recorded. The file is read, never mapped, so damage is an
// error (ErrDamaged) and not a crash.
func Check(ctx context.Context, dir string) (CheckReport, error) { panic("unwritten") }

// CheckFile is Check of one environment file, such as a snapshot.
func CheckFile(ctx context.Context, file string) (CheckReport, error) { panic("unwritten") }
