package lmdbstore

import (
	"io"
	"os"
	"path/filepath"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// pages is the file of an environment, to look at pages before LMDB takes them.
type pages struct {
	file *os.File
	view *mapped // of the file's beginning; nil if the system refuses it
}

func openPages(dir string) (*pages, error) {
	f, err := os.Open(filepath.Join(dir, dataFile))
	if err != nil {
		return nil, err
	}
	return &pages{file: f}, nil
}

// touch begins to look at what a write transaction touches.
func (p *pages) touch() (*mdbfile.Touch, error) {
	info, err := p.file.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	if p.view == nil || size > int64(len(p.view.mem)) {
		if err := p.unmap(); err != nil {
			return nil, err
		}
		// Room to grow; what is behind the end of the file is not looked at.
		if p.view, err = mapFile(p.file, max(2*size, 16<<20)); err != nil {
			p.view = nil
		}
	}
	var r io.ReaderAt = p.file
	if p.view != nil {
		r = p.view
	}
	return mdbfile.NewTouch(r, size, dbMeta)
}

func (p *pages) unmap() error {
	if p.view == nil {
		return nil
	}
	m := p.view
	p.view = nil
	return m.close()
}

func (p *pages) close() error {
	err := p.unmap()
	if closeErr := p.file.Close(); err == nil {
		err = closeErr
	}
	return err
}
