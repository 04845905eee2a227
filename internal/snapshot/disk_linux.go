package snapshot

import (
	"errors"
	"os"
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

// isCorrupt reports whether a file system found its own structures, or a checksum of
// a file's content, to be wrong.
func isCorrupt(err error) bool { return errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) }

// openUncached opens a file whose reads go past the page cache. Where the file
// system has no such thing what is cached is dropped first, as far as it may be.
func openUncached(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if !errors.Is(err, unix.EINVAL) {
		return f, err
	}
	if f, err = os.Open(path); err == nil {
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice
	}
	return f, err
}
