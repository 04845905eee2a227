package snapshot

import (
	"math"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// freeSpace returns how many bytes may still be written under dir, if known.
func freeSpace(dir string) (int64, bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	if free := s.Bavail * uint64(s.Frsize); free <= math.MaxInt64 {
		return int64(free), true
	}
	return math.MaxInt64, true
}

// startWriteback asks the kernel to begin writing a range, without waiting. It
// is a hint: durability is Sync's.
func startWriteback(f durable.File, off, n int64) {
	file, ok := f.(syscall.Conn)
	if !ok {
		return
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.SyncFileRange(int(fd), off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}
