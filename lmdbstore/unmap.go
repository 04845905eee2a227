package lmdbstore

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileID is what tells one file from another.
type fileID struct{ dev, ino uint64 }

func fileOf(fd int) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return fileID{st.Dev, st.Ino}, err
}

// letGo removes the maps of a file that LMDB will not use any more, and closes its
// descriptors, unless LMDB came so far: otherwise a file that was given up would
// keep its disk space until the process ends. LMDB tells nobody where its map is.
func letGo(file fileID, fd int) error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("let go of a damaged file: %w", err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to, offset uintptr
		var major, minor uint32
		var ino uint64
		var mode string
		// address perms offset dev inode pathname: proc(5).
		if _, err := fmt.Sscanf(line, "%x-%x %s %x %x:%x %d", &from, &to, &mode, &offset, &major, &minor, &ino); err != nil {
			return fmt.Errorf("parse /proc/self/maps: %q: %w", line, err)
		}
		if file != (fileID{unix.Mkdev(major, minor), ino}) {
			continue
		}
		if err := unix.MunmapPtr(unsafe.Add(nil, from), to-from); err != nil {
			return fmt.Errorf("unmap a damaged file: %w", err)
		}
	}
	return closeAll(file, fd)
}

// closeAll closes LMDB's descriptors of a file: fd, and the one that it keeps to
// itself for the meta pages, which like nobody else's is for writing.
func closeAll(file fileID, fd int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("let go of a damaged file: %w", err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if open, err := fileOf(n); err != nil || open != file {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFL, 0)
		if err != nil || n != fd && flags&unix.O_ACCMODE == unix.O_RDONLY {
			continue
		}
		if err := unix.Close(n); err != nil {
			return fmt.Errorf("let go of a damaged file: %w", err)
		}
	}
	return nil
}
