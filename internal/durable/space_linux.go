package durable

import (
	"math"

	"golang.org/x/sys/unix"
)

// FreeSpace returns how many bytes may still be written below dir. A file system
// that does not say is taken to have room without end.
func FreeSpace(dir string) int64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return math.MaxInt64
	}
	if free := s.Bavail * uint64(s.Frsize); free <= math.MaxInt64 {
		return int64(free)
	}
	return math.MaxInt64
}
