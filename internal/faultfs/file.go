package faultfs

import (
	"io"
	"io/fs"
	"slices"
	"syscall"
	"time"
)

// file is an open file; it stays usable when its name is gone.
type file struct {
	fs       *FS
	name     string
	node     *node
	writable bool
	closed   bool
}

func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	err = f.fs.do(Read, f.name, func(int) error {
		if off < int64(len(f.node.content)) {
			n = copy(p, f.node.content[off:])
		}
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.usable(); err != nil {
		return 0, err
	}
	err = f.fs.do(Write, f.name, func(short int) error {
		var full error
		n = len(p)
		if short >= 0 {
			n = min(n, short)
		}
		if grow := off + int64(n) - int64(len(f.node.content)); grow > 0 && f.fs.space >= 0 {
			if grow > f.fs.space {
				n = max(0, n-int(grow-f.fs.space))
				grow, full = f.fs.space, syscall.ENOSPC
			}
			f.fs.space -= grow
		}
		if n > 0 {
			f.node.change(Change{Off: off, Data: slices.Clone(p[:n])})
		}
		return full
	})
	return n, err
}

func (f *file) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	return f.fs.do(Truncate, f.name, func(int) error {
		f.fs.free(max(0, len(f.node.content)-int(size)))
		f.node.change(Change{Off: size})
		return nil
	})
}

func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	err := f.fs.do(Sync, f.name, func(int) error {
		for _, c := range f.node.pending {
			f.node.synced = c.Apply(f.node.synced)
		}
		return nil
	})
	// After a failed fsync the pages count as clean: the bytes can be read, but
	// the next fsync will not write them.
	f.node.pending = nil
	return err
}

func (f *file) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	return int64(len(f.node.content)), nil
}

func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}

func (f *file) usable() error {
	if f.closed {
		return fs.ErrClosed
	}
	if !f.writable {
		return syscall.EBADF
	}
	return nil
}

type info struct {
	name string
	size int64
	dir  bool
}

func (n *node) info(name string) info {
	return info{name: name, size: int64(len(n.content)), dir: n.names != nil}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}
