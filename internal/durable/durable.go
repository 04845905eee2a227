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
	"io"
	"io/fs"
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

// FS is the part of a file system that durable writes need.
type FS interface {
	// OpenFile opens name as os.OpenFile does.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Rename(oldname, newname string) error
	Remove(name string) error
	MkdirAll(name string, perm fs.FileMode) error
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir returns once the directory's entries are on stable storage.
	SyncDir(name string) error
}

// OS is the operating system's file system.
var OS FS = osFS{}
