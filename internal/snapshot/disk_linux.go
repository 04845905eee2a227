package snapshot

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/internal/durable"
)

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
