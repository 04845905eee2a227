package p2p

import (
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// checkRoom returns an error if the disk can not hold what path lacks of size
// bytes.
func checkRoom(path string, size int64) error {
	var have int64
	var st syscall.Stat_t
	if syscall.Stat(path, &st) == nil {
		have = st.Blocks * 512
	}
	if need, free := size-have, durable.FreeSpace(filepath.Dir(path)); need > free {
		return fmt.Errorf("%w: %d bytes are needed in %s and %d are free", syscall.ENOSPC, need, filepath.Dir(path), free)
	}
	return nil
}
