package snapshot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/txlog"
)

// RewriteSmall compares the manifest and the torrent of a snapshot that is held with
// what is on the disk, and writes those that differ again, from memory. What was there
// is set aside. It returns how many it wrote.
func (r *Repo) RewriteSmall(pos txlog.Pos) (written int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, ErrClosed
	}
	for _, s := range r.held {
		if s.Manifest.Pos != pos {
			continue
		}
		// The manifest last, as always.
		for _, f := range []struct {
			ext  string
			want []byte
		}{{torrentExt, s.Torrent.Metainfo()}, {manifestExt, s.Note}} {
			rewritten, err := r.rewrite(Name(pos)+f.ext, f.want)
			if err != nil {
				return written, fmt.Errorf("write %s again: %w", Name(pos)+f.ext, err)
			}
			if rewritten {
				written++
			}
		}
	}
	if written > 0 {
		err = r.clearAside()
	}
	return written, err
}

func (r *Repo) rewrite(file string, want []byte) (bool, error) {
	path := filepath.Join(r.dir, file)
	got, err := os.ReadFile(path)
	if err == nil && bytes.Equal(got, want) {
		return false, nil
	}
	reason := err
	if err == nil {
		reason = fmt.Errorf("%d bytes that are not those that were written", len(got))
		if err := durable.WriteFile(r.o.FS, path+damagedExt, got, 0o644); err != nil {
			return false, err
		}
	}
	r.o.Logger.Error("a file of a snapshot is damaged: it is written again; check the disk", "file", path, "err", reason)
	return true, durable.WriteFile(r.o.FS, path, want, 0o644)
}
