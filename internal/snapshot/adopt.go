package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

// Partial returns the path at which to fetch the file of a snapshot.
func (r *Repo) Partial(m *Manifest) string {
	return filepath.Join(r.dir, Name(m.Pos)+partExt)
}

// Adopt completes a snapshot that was fetched to Partial: it verifies that the
// manifest in note and the torrent agree, and the file's size, fsyncs and renames.
// The partial files of older snapshots, which nobody will want any more, are
// removed. Whose signatures are in the note the caller has seen to; a snapshot that
// is there already gets them.
//
// It does not read the file. The caller vouches that this process verified every
// piece of it against t, when it arrived or, if it was there before, by reading
// it; p2p.Swarm.Fetch returns only then. Since the manifest binds t's list of
// SHA-256s by its root, the file is the one that the manifest describes. A
// process that finds the snapshot on disk later can not know that: it has to
// call Verify. What else the manifest says of the file, VerifyStatement compares,
// or Store.Install before it opens the file (Manifest.Expected).
func (r *Repo) Adopt(ctx context.Context, note []byte, t *chunker.Torrent) (*Snapshot, error) {
	ctx, done, err := r.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	m, err := ParseNote(note)
	if err != nil {
		return nil, fmt.Errorf("adopt snapshot: %w", err)
	}
	s, err := r.adopt(ctx, m, note, t)
	if err != nil {
		return nil, fmt.Errorf("adopt snapshot: %w", err)
	}
	r.o.Logger.Info("adopted a snapshot", "pos", m.Pos, "infohash", m.InfoHash, "bytes", m.Size)
	return s, nil
}

func (r *Repo) adopt(ctx context.Context, m *Manifest, note []byte, t *chunker.Torrent) (*Snapshot, error) {
	if err := m.Matches(t); err != nil {
		return nil, err
	}
	if s, ok := r.at(m.Pos); ok && s.Manifest.InfoHash == m.InfoHash {
		s, err := r.Countersign(m.Pos, note)
		if err != nil {
			return nil, err
		}
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
	s, err := r.publish(m, note, t, path)
	if err != nil {
		return nil, err
	}
	return s, r.removeParts(m.Pos.Seq)
}

// removeParts deletes partial files up to a seq, but not of snapshots that are to be
// mended.
func (r *Repo) removeParts(upTo uint64) error {
	entries, err := r.o.FS.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name, seq, ext, ok := splitName(e.Name()); ok && ext == partExt && seq <= upTo && !r.isBroken(name) {
			if err := r.o.FS.Remove(filepath.Join(r.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove a partial file: %w", err)
			}
		}
	}
	return nil
}

// Verify reads a snapshot's file, on all cores, and compares its size and the
// SHA-256 of every piece with those that the manifest binds. What is wrong with the
// file is an *AlteredError; other errors, as Scrub's, say nothing of it.
func (s *Snapshot) Verify(ctx context.Context) error {
	f, err := os.Open(s.Path)
	if err != nil {
		return s.unopened(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	good, err := s.Torrent.Check(ctx, f, nil)
	if errors.Is(err, syscall.EIO) {
		return s.Scrub(ctx, nil) // which pieces can not be read
	}
	if err != nil {
		return err
	}
	var bad []int
	for i, ok := range good {
		if !ok {
			bad = append(bad, i)
		}
	}
	if len(bad) > 0 || info.Size() != s.Manifest.Size {
		return s.altered(info.Size(), bad, nil)
	}
	return nil
}

// VerifyStatement compares a file, of which every piece is known to be good, with
// what else the manifest says of it: dataset, position, time, format, pairs, and
// the SHA-256 of the whole. It reads the file once, and never maps it. A
// difference is lmdbstore.ErrUnexpected: whoever signed that erred or lied.
func (s *Snapshot) VerifyStatement(ctx context.Context) error {
	if err := s.CheckInfo(); err != nil {
		return missing(err)
	}
	want := s.Manifest.Expected()
	f, err := os.Open(s.Path)
	if err != nil {
		return missing(err)
	}
	defer f.Close()
	h := sha256.New()
	for n := int64(1); n > 0; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n, err = io.CopyN(h, f, hashStep); err != nil && err != io.EOF {
			return err
		}
	}
	if sum := h.Sum(nil); !bytes.Equal(sum, want.SHA256[:]) {
		return fmt.Errorf("%w: its SHA-256 is %x, and is said to be %x", lmdbstore.ErrUnexpected, sum, want.SHA256)
	}
	return nil
}

// CheckInfo compares what the manifest says with what the file says of itself in its
// first pages, without looking at the rest: lmdbstore.ErrUnexpected, unless those pages
// can not be read.
func (s *Snapshot) CheckInfo() error {
	info, err := lmdbstore.Inspect(s.Path)
	if err != nil {
		return err
	}
	return s.Manifest.Expected().CheckInfo(info)
}

// hashStep is how many bytes are read between looks at the context.
const hashStep = 8 << 20
