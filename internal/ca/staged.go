package ca

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// staged are files that are complete on the disk under other names, so that they
// can take their names one right after the other.
type staged []string

const stagedSuffix = ".new"

// add writes what is to become path. If there is such a file and it is somebody
// else's, as a service's user's, the new one will be, too.
func (s *staged) add(path string, data []byte, perm fs.FileMode) error {
	tmp := path + stagedSuffix
	*s = append(*s, path)
	if err := durable.WriteFile(durable.OS, tmp, data, perm); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Getuid() || int(st.Gid) != os.Getgid()) {
		if err := os.Chown(tmp, int(st.Uid), int(st.Gid)); err != nil {
			return fmt.Errorf("give the new %s to the owner of the old: %w", path, err)
		}
	}
	return nil
}

// commit gives all files their names, in the order in which they were added.
func (s *staged) commit() error {
	var dirs []string
	for _, path := range *s {
		if err := durable.OS.Rename(path+stagedSuffix, path); err != nil {
			return err
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	*s = nil
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		if err := durable.OS.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// discard removes what was not committed.
func (s *staged) discard() {
	for _, path := range *s {
		_ = os.Remove(path + stagedSuffix)
	}
}
