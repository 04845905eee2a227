package durable

import (
	"golang.org/x/sys/unix"
)

// Uncache makes the next reads of a file go to the disk instead of the page
// cache, as far as the file system can and nobody maps the file. What was written
// and not fsynced stays cached.
func Uncache(f File) {
	if real, ok := f.(interface{ Fd() uintptr }); ok {
		unix.Fadvise(int(real.Fd()), 0, 0, unix.FADV_DONTNEED) // advice may be ignored
	}
}
