// Package durable makes files and directory entries survive a power cut.
//
// It is the only place that decides in what order bytes, names and directories
// reach the disk: a file's content is fsynced before its final name exists, and
// the directory is fsynced after the name changed. Everything that must be
// all-or-nothing in this module goes through it.
//
// The file system is an interface so that tests can inject faults (see
// internal/faultfs); production code uses OS.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size returns the file's length in bytes.
	Size() (int64, error)
	// Truncate cuts or extends the file to size bytes.
	Truncate(size int64) error
	// Sync returns once the file's content and length are on stable storage.
	// After an error nothing is known about what was kept: the caller must not
	// retry Sync and believe the answer.
	Sync() error
}

// FS is the part of a file system that durable writes need. Its errors are, or
// wrap, those of package os.
type FS interface {
	// OpenFile opens name as os.OpenFile does.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Stat(name string) (fs.FileInfo, error)
	Rename(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	MkdirAll(name string, perm fs.FileMode) error
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir returns once the directory's entries are on stable storage.
	SyncDir(name string) error
}

// WriteFile replaces name by a file that holds data: after a power cut there is
// either what was there before or all of data. It goes through name + ".tmp",
// which it overwrites, so one caller at a time may write a name.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	tmp := name + ".tmp"
	if err := writeAll(fsys, tmp, data, perm); err != nil {
		return errors.Join(err, ignoreMissing(fsys.Remove(tmp)))
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return errors.Join(err, ignoreMissing(fsys.Remove(tmp)))
	}
	return fsys.SyncDir(filepath.Dir(name))
}

func writeAll(fsys FS, name string, data []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Rename gives the file or directory oldname the name newname, replacing a file
// or an empty directory of that name. It fsyncs oldname first, of a directory
// only the list of names, and the directories of both names afterwards. An
// error from that last step means that newname is there but may not survive a
// power cut.
func Rename(fsys FS, oldname, newname string) error {
	if err := Sync(fsys, oldname); err != nil {
		return err
	}
	if err := fsys.Rename(oldname, newname); err != nil {
		return err
	}
	to, from := filepath.Dir(newname), filepath.Dir(oldname)
	if err := fsys.SyncDir(to); err != nil || to == from {
		return err
	}
	return fsys.SyncDir(from)
}

// Sync fsyncs the file or directory name, whoever wrote it.
func Sync(fsys FS, name string) error {
	info, err := fsys.Stat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fsys.SyncDir(name)
	}
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// MkdirAll makes the directory name and the parents it lacks, and fsyncs the
// parent of each.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	name = filepath.Clean(name)
	parent := filepath.Dir(name)
	switch info, err := fsys.Stat(name); {
	case err == nil && !info.IsDir():
		return fmt.Errorf("make directory %s: a file has that name", name)
	case err == nil:
		// Whoever made it may have been killed before it fsynced the parent. A
		// parent that we may not read is not ours, and then nor was that.
		if err := fsys.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := MkdirAll(fsys, parent, perm); err != nil {
		return err
	}
	if err := fsys.MkdirAll(name, perm); err != nil {
		return err
	}
	return fsys.SyncDir(parent)
}

// Remove removes a file or an empty directory and fsyncs its directory. A name
// that is not there is no error.
func Remove(fsys FS, name string) error {
	if err := ignoreMissing(fsys.Remove(name)); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// RemoveAll removes name and everything below it and fsyncs its directory. A
// name that is not there is no error. A power cut in the middle leaves a part.
func RemoveAll(fsys FS, name string) error {
	if err := removeTree(fsys, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

func removeTree(fsys FS, name string) error {
	entries, err := fsys.ReadDir(name)
	if err == nil {
		for _, e := range entries {
			child := filepath.Join(name, e.Name())
			if e.IsDir() {
				err = removeTree(fsys, child)
			} else {
				err = ignoreMissing(fsys.Remove(child))
			}
			if err != nil {
				return err
			}
		}
	}
	// ReadDir's error, if any, is that name is a file or is not there: Remove
	// tells, or removes it.
	return ignoreMissing(fsys.Remove(name))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
