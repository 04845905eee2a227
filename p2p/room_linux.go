package p2p

import (
	"fmt"
	"path/filepath"
	"syscall"
)

// checkRoom returns an error if the disk can not hold what path lacks of size
// bytes. A file system that does not say is taken to have room.
func checkRoom(path string, size int64) error {
	var fs syscall.Statfs_t
	if syscall.Statfs(filepath.Dir(path), &fs) != nil {
		return nil
	}
	var have int64
	var st syscall.Stat_t
	if syscall.Stat(path, &st) == nil {
		have = st.Blocks * 512
	}
	free := int64(fs.Bavail) * fs.Frsize
	if need := size - have; need > free {
		return fmt.Errorf("%w: %d bytes are needed in %s and %d are free", syscall.ENOSPC, need, filepath.Dir(path), free)
	}
	return nil
}
