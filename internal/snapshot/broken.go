package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/txlog"
)

// Broken is a snapshot whose files do not hold together. It is not listed. What is
// good of its file is at Partial, so that whoever fetches it there and adopts it
// again fetches no more than what is bad.
type Broken struct {
	Name     string // as of Name
	Seq      uint64
	Manifest *Manifest        // nil if it can not be read
	Note     []byte           // with the manifest; of signatures nothing is known
	Torrent  *chunker.Torrent // nil if it can not be read or is not the manifest's
	Err      error            // what is wrong
	Damaged  int64            // bytes in bad pieces and files, as far as known
}

// Broken returns the snapshots that lack something, newest first.
func (r *Repo) Broken() []*Broken {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.broken)
}

func (r *Repo) isBroken(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.broken, func(b *Broken) bool { return b.Name == name })
}

// addBroken notes b in its place. The caller holds mu, or is Open.
func (r *Repo) addBroken(b *Broken) {
	r.mendedLocked(b.Name)
	r.broken = append(r.broken, b)
	slices.SortFunc(r.broken, func(a, b *Broken) int { return strings.Compare(b.Name, a.Name) })
}

// mendedLocked forgets a broken snapshot. The caller holds mu, or is Open.
func (r *Repo) mendedLocked(name string) {
	r.broken = slices.DeleteFunc(slices.Clone(r.broken), func(b *Broken) bool { return b.Name == name })
}

// Break takes a snapshot that is held, whose file is damaged, out of the list. The
// file becomes Partial with its bad pieces zeroed, so that they are bad for whoever
// reads them, in memory or on the disk. Some of them are kept as evidence. After an
// error the snapshot is held as before, and Break can be called again.
func (r *Repo) Break(pos txlog.Pos, why *AlteredError) (*Broken, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	i := slices.IndexFunc(r.held, func(s *Snapshot) bool { return s.Manifest.Pos == pos })
	if i < 0 {
		return nil, fmt.Errorf("break snapshot %s: it is not held", pos)
	}
	s := r.held[i]
	b := &Broken{Name: Name(pos), Seq: pos.Seq, Manifest: &s.Manifest, Note: s.Note, Torrent: s.Torrent, Err: why}
	for _, piece := range why.Bad {
		b.Damaged += s.Torrent.PieceSize(piece)
	}
	if why.Size < 0 && why.Err != nil && !isDamage(why.Err) {
		return nil, fmt.Errorf("break snapshot %s: nothing is known of its file: %w", pos, why.Err)
	}
	if err := r.toPartial(b, why.Bad); err != nil {
		return nil, fmt.Errorf("break snapshot %s: %w", pos, err)
	}
	r.held = slices.Delete(slices.Clone(r.held), i, i+1)
	r.addBroken(b)
	r.o.Logger.Info("made a damaged snapshot ready to be mended", "snapshot", b.Name, "bad_pieces", len(why.Bad), "evidence", r.evidence(b.Name))
	return b, r.clearAside()
}

// BreakManifest takes a snapshot that is held, whose manifest says something else
// than its file, out of the list, and sets the manifest aside. After an error the
// snapshot is listed as before, though its file may have become Partial, and
// BreakManifest can be called again.
func (r *Repo) BreakManifest(pos txlog.Pos, why error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	name := Name(pos)
	b, err := r.dismantle(&DamagedError{Name: name, Files: []string{name + manifestExt, name + torrentExt, name + dataExt}, Err: why})
	if err != nil {
		return fmt.Errorf("set the manifest of snapshot %s aside: %w", pos, err)
	}
	r.held = slices.DeleteFunc(slices.Clone(r.held), func(s *Snapshot) bool { return s.Manifest.Pos == pos })
	r.addBroken(b)
	r.o.Logger.Info("set the manifest of a snapshot aside", "evidence", r.evidence(name))
	return r.clearAside()
}

// Evidence is the pattern of what is kept of a broken snapshot's files.
func (r *Repo) Evidence(b *Broken) string { return r.evidence(b.Name) }

func (r *Repo) evidence(name string) string {
	return filepath.Join(r.dir, name+".*"+damagedExt)
}

// toPartial makes the file of a snapshot its partial file. The manifest stays, and
// says after a crash what there is to mend.
func (r *Repo) toPartial(b *Broken, bad []int) error {
	path, part := filepath.Join(r.dir, b.Name+dataExt), filepath.Join(r.dir, b.Name+partExt)
	if _, err := r.o.FS.Stat(path); err != nil {
		return unlessMissing(err)
	}
	// The rename comes last, so that who fails before can begin again.
	if len(bad) > 0 && b.Torrent != nil {
		switch err := r.blank(path, b, bad); {
		case isDamage(err):
			// Blocks that can not even be written: the file gets others.
			r.o.Logger.Warn("a damaged snapshot file can not be written to: all of it will be fetched", "snapshot", b.Name, "err", err)
			return durable.Remove(r.o.FS, path)
		case err != nil: // no descriptor, no room, no right to write: that is no damage
			return err
		}
	}
	return durable.Rename(r.o.FS, path, part)
}

// maxBadKept is how many bad pieces of a snapshot are kept as evidence.
const maxBadKept = 4

// blank zeroes pieces, and keeps what the first of them held. That a file could not
// be opened does not make its pieces bad.
func (r *Repo) blank(path string, b *Broken, bad []int) (err error) {
	f, err := r.o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return err
	}
	buf := make([]byte, b.Torrent.PieceLength())
	for n, piece := range bad {
		at := int64(piece) * b.Torrent.PieceLength()
		if at >= size {
			break // they are missing, and so are those that follow
		}
		data := buf[:min(b.Torrent.PieceSize(piece), size-at)]
		if n < maxBadKept {
			r.keepPiece(f, b.Name, piece, data, at)
		}
		clear(data)
		if _, err := f.WriteAt(data, at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// keepPiece saves a bad piece as evidence, if it can be read and there is room.
func (r *Repo) keepPiece(f io.ReaderAt, name string, piece int, buf []byte, at int64) {
	path := filepath.Join(r.dir, fmt.Sprintf("%s.piece-%d%s", name, piece, damagedExt))
	if durable.FreeSpace(r.dir) < 16*int64(len(buf)) {
		return
	}
	if _, err := r.o.FS.Stat(path); err == nil {
		return // by an attempt that failed after it had zeroed the piece
	}
	if n, err := f.ReadAt(buf, at); n > 0 && (err == nil || err == io.EOF) {
		if err := durable.WriteFile(r.o.FS, path, buf[:n], 0o644); err != nil {
			r.o.Logger.Warn("a bad piece could not be kept as evidence", "file", path, "err", err)
		}
	}
}

// dismantle makes the files of a damaged snapshot, as a scan found them, those of a
// broken one: what is damaged is set aside, what is not is kept. It can be killed
// anywhere and called again, because the manifest goes last.
func (r *Repo) dismantle(d *DamagedError) (*Broken, error) {
	_, seq, _, _ := splitName(d.Name + dataExt)
	b := &Broken{Name: d.Name, Seq: seq, Manifest: d.manifest, Note: d.note, Torrent: d.torrent, Err: d.Err}
	b.Damaged = r.lacking(b)
	if err := r.toPartial(b, nil); err != nil {
		return nil, err
	}
	if b.Torrent == nil || b.Manifest == nil {
		if b.Torrent == nil {
			b.Damaged += r.sizeOf(d.Name + torrentExt)
		}
		if err := r.setAside(d, torrentExt, b.Torrent != nil); err != nil {
			return nil, err
		}
	}
	if b.Manifest == nil {
		b.Torrent = nil // nothing says whose it is
		b.Damaged += r.sizeOf(d.Name + manifestExt)
		if err := r.setAside(d, manifestExt, false); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// lacking returns how many bytes a snapshot's file lacks, or has too many.
func (r *Repo) lacking(b *Broken) int64 {
	if b.Manifest == nil {
		return 0
	}
	n := r.sizeOf(b.Name+dataExt) - b.Manifest.Size
	return max(n, -n)
}

// sizeOf returns the size of a file of the directory, 0 if there is none.
func (r *Repo) sizeOf(file string) int64 {
	info, err := r.o.FS.Stat(filepath.Join(r.dir, file))
	if err != nil {
		return 0
	}
	return info.Size()
}

// setAside renames one of a damaged snapshot's files, or removes it if it is sound.
func (r *Repo) setAside(d *DamagedError, ext string, sound bool) error {
	path := filepath.Join(r.dir, d.Name+ext)
	switch {
	case !slices.Contains(d.Files, d.Name+ext):
		return nil
	case sound:
		return durable.Remove(r.o.FS, path)
	}
	// An attempt that failed later may have renamed it.
	return unlessMissing(durable.Rename(r.o.FS, path, path+damagedExt))
}

// Redescribe makes the torrent of a broken snapshot again by reading its file. If
// that is what the manifest describes the snapshot is whole, and listed again; what
// follows it in the file is cut off.
func (r *Repo) Redescribe(ctx context.Context, b *Broken) (*Snapshot, error) {
	ctx, done, err := r.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	t, err := r.describe(ctx, b)
	if err == nil {
		err = b.Manifest.Matches(t)
	}
	if err != nil {
		return nil, fmt.Errorf("describe snapshot %s again: %w", b.Name, err)
	}
	if err := r.shorten(r.Partial(b.Manifest), b.Manifest.Size); err != nil {
		return nil, fmt.Errorf("cut off what follows snapshot %s: %w", b.Name, err)
	}
	return r.publish(b.Manifest, b.Note, t, r.Partial(b.Manifest))
}

// shorten cuts off what a file has beyond size.
func (r *Repo) shorten(path string, size int64) (err error) {
	f, err := r.o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if has, err := f.Size(); err != nil || has <= size {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

func (r *Repo) describe(ctx context.Context, b *Broken) (*chunker.Torrent, error) {
	if b.Manifest == nil {
		return nil, errors.New("its manifest is damaged")
	}
	f, err := r.o.FS.OpenFile(r.Partial(b.Manifest), os.O_RDONLY, 0)
	if err != nil {
		return nil, missing(err)
	}
	defer f.Close()
	if size, err := f.Size(); err != nil || size < b.Manifest.Size {
		return nil, errors.Join(err, b.Manifest.checkSize(size))
	}
	h, err := chunker.NewHasher(b.Name+dataExt, b.Manifest.Size)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(io.NewSectionReader(f, 0, b.Manifest.Size), mintBuffer)
	for n := int64(1); n > 0; {
		if ctx.Err() != nil {
			h.Abort()
			return nil, context.Cause(ctx)
		}
		if n, err = io.CopyN(h, in, hashStep); err != nil && err != io.EOF {
			h.Abort()
			return nil, err
		}
	}
	t, _, err := h.Finish()
	return t, err
}

// Discard removes a broken snapshot, but for what was set aside of it.
func (r *Repo) Discard(b *Broken) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if slices.ContainsFunc(r.held, func(s *Snapshot) bool { return Name(s.Manifest.Pos) == b.Name }) {
		return nil // it is whole again
	}
	return r.remove(b.Name)
}
