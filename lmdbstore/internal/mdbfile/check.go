package mdbfile

import (
	"context"
	"io"
)

// Report is what Check found.
type Report struct {
	Txnid     uint64 // of the newest snapshot, which was checked
	Pages     uint64 // up to the last one in use, with the meta pages
	FreePages uint64 // listed as reusable
	Tail      int64  // bytes of the file after the last page in use; a snapshot has none
	DBs       map[string]Stat
}

// Check verifies the structure of the newest snapshot in a file of size bytes
// that nobody writes to: both meta pages, every page in use exactly once or in
// the free list, every node in bounds, keys in order within and across pages
// and consistent with the branch pages above, and all counts as recorded. It
// reads every page except the insides of overflow runs. Values are opaque to
// it. Damage is an error that wraps ErrDamaged.
func Check(ctx context.Context, r io.ReaderAt, size int64) (Report, error) { panic("unwritten") }
