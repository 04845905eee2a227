package lmdbstore

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// mapped reads a file through a memory map: for single pages that are cached, as
// minting reads them, a fraction of the processor time of a system call each.
// A page that cannot be read, because the disk fails or the file was cut short
// meanwhile, is an error here and not the end of the process.
type mapped struct{ mem []byte }

func openMapped(file string) (source, int64, error) {
	f, size, err := openFile(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	m, err := mapFile(f, size)
	if err != nil {
		return nil, 0, err
	}
	return m, size, nil
}

// mapFile maps size bytes of f, which may be closed afterwards.
func mapFile(f *os.File, size int64) (*mapped, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &mapped{mem}, nil
}

// ReadAt implements io.ReaderAt.
func (m *mapped) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off >= int64(len(m.mem)) {
		return 0, io.EOF
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			n, err = 0, fmt.Errorf("%w: the page at offset %d cannot be read: the disk failed, or the file was cut short", ErrDamaged, off)
		default:
			panic(fault)
		}
	}()
	if n = copy(p, m.mem[off:]); n < len(p) {
		err = io.EOF
	}
	return n, err
}

// close unmaps the file. Nothing may be read after it.
func (m *mapped) close() error { return unix.Munmap(m.mem) }
