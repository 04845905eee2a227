package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/qs-peer/qs-peer/chunker"
)

// Partial returns the path at which to fetch the file of a snapshot.
func (r *Repo) Partial(m *Manifest) string {
	return filepath.Join(r.dir, Name(m.Pos)+partExt)
}

// Adopt completes a snapshot that was fetched to Partial: it verifies that
// manifest and torrent agree, and the file's size and SHA-256, fsyncs and
// renames. A file that does not match is an error and is left where it is. The
// partial files of older snapshots, which nobody will want any more, are removed.
func (r *Repo) Adopt(ctx context.Context, m *Manifest, t *chunker.Torrent) (*Snapshot, error) {
	ctx, done, err := r.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	s, err := r.adopt(ctx, m, t)
	if err != nil {
		return nil, fmt.Errorf("adopt snapshot: %w", err)
	}
	r.o.Logger.Info("adopted a snapshot", "pos", m.Pos, "infohash", m.InfoHash, "bytes", m.Size)
	return s, nil
}

func (r *Repo) adopt(ctx context.Context, m *Manifest, t *chunker.Torrent) (*Snapshot, error) {
	if err := m.Matches(t); err != nil {
		return nil, err
	}
	if s, ok := r.at(m.Pos); ok && s.Manifest.InfoHash == m.InfoHash {
		return s, r.removeParts(m.Pos.Seq)
	}
	path := r.Partial(m)
	f, err := r.o.FS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open fetched snapshot: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if err := m.checkSize(size); err != nil {
		return nil, err
	}
	sum := sha256.New()
	if err := readAll(ctx, f, size, sum); err != nil {
		return nil, err
	}
	if err := m.checkSum(sum); err != nil {
		return nil, err
	}
	s, err := r.publish(m, t, path)
	if err != nil {
		return nil, err
	}
	return s, r.removeParts(m.Pos.Seq)
}

// removeParts deletes partial files up to a seq.
func (r *Repo) removeParts(upTo uint64) error {
	entries, err := r.o.FS.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, seq, ext, ok := splitName(e.Name()); ok && ext == partExt && seq <= upTo {
			if err := r.o.FS.Remove(filepath.Join(r.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove a partial file: %w", err)
			}
		}
	}
	return nil
}

// Verify reads a snapshot's file and compares size, pieces and SHA-256 with the
// manifest.
func (s *Snapshot) Verify(ctx context.Context) error {
	f, err := os.Open(s.Path)
	if err != nil {
		return missing(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m := &s.Manifest
	if err := m.checkSize(info.Size()); err != nil {
		return err
	}
	// Hashing the file anew gives pieces and SHA-256 in one read.
	h, err := chunker.NewHasher(s.Torrent.Name(), m.Size)
	if err != nil {
		return err
	}
	defer h.Abort()
	if err := readAll(ctx, f, m.Size, h); err != nil {
		return err
	}
	t, sum, err := h.Finish()
	if err != nil {
		return err
	}
	if t.InfoHash() == m.InfoHash && sum == m.SHA256 {
		return nil
	}
	if t.PieceLength() != s.Torrent.PieceLength() {
		return fmt.Errorf("the file's SHA-256 is %x; its manifest says %x", sum, m.SHA256)
	}
	var bad, first int
	for i := t.Pieces() - 1; i >= 0; i-- {
		if t.PieceHash(i) != s.Torrent.PieceHash(i) {
			bad, first = bad+1, i
		}
	}
	return fmt.Errorf("the file is altered: %d of %d pieces are bad, the first at offset %d", bad, t.Pieces(), int64(first)*t.PieceLength())
}

func (m *Manifest) checkSum(h hash.Hash) error {
	if got := [sha256.Size]byte(h.Sum(nil)); got != m.SHA256 {
		return fmt.Errorf("the file's SHA-256 is %x; its manifest says %x", got, m.SHA256)
	}
	return nil
}

// readAll copies size bytes of f to w until ctx ends.
func readAll(ctx context.Context, f io.ReaderAt, size int64, w io.Writer) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := buf[:min(int64(len(buf)), size-off)]
		if n, err := f.ReadAt(part, off); n < len(part) {
			return fmt.Errorf("read at offset %d: %w", off+int64(n), err)
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		off += int64(len(part))
	}
	return nil
}
