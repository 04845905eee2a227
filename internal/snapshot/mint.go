package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

const (
	mintBuffer = 1 << 20 // bytes given to the disk and the hasher at a time
	writeback  = 8 << 20 // bytes after which the kernel is told to start writing
)

// Minter is what Mint needs of a store; *lmdbstore.Store is one.
type Minter interface {
	State() lmdbstore.State
	Mint(ctx context.Context, begin func(lmdbstore.SnapshotInfo) (io.Writer, error)) (lmdbstore.SnapshotInfo, error)
}

// Mint makes a snapshot of the store, or returns the one that is there at its
// position and bears this node's signature, if it signs. One mint runs at a time; a second call waits. progress, if not nil,
// is called with bytes done and total.
func (r *Repo) Mint(ctx context.Context, m Minter, progress func(done, total int64)) (*Snapshot, error) {
	return r.minting(ctx, func(ctx context.Context) (*Snapshot, error) {
		if s, ok := r.at(m.State().Pos); ok && r.signed(s) {
			return s, nil
		}
		return r.mintTimed(ctx, m, nil, progress)
	})
}

// Confirm mints the store, which somebody brought to the position of a manifest
// by replaying the log. If the result is what the manifest's note says, to the
// byte, the snapshot is kept with this node's signature added to those in the
// note. Otherwise the error is a *MismatchError, and nothing is kept or signed.
func (r *Repo) Confirm(ctx context.Context, m Minter, note []byte) (*Snapshot, error) {
	return r.minting(ctx, func(ctx context.Context) (*Snapshot, error) { return r.mintTimed(ctx, m, note, nil) })
}

// minting runs mint when no other does.
func (r *Repo) minting(ctx context.Context, mint func(context.Context) (*Snapshot, error)) (*Snapshot, error) {
	ctx, done, err := r.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	select {
	case r.mint <- struct{}{}:
		defer func() { <-r.mint }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return mint(ctx)
}

func (r *Repo) mintTimed(ctx context.Context, m Minter, claimed []byte, progress func(done, total int64)) (*Snapshot, error) {
	if state := m.State(); state.Dataset.IsZero() || state.Pos.IsZero() {
		return nil, errors.New("mint snapshot: the store is empty")
	}
	began := time.Now()
	s, err := r.mintNew(ctx, m, claimed, progress)
	if err != nil {
		r.metrics.mints.WithLabelValues("failed").Inc()
		return nil, fmt.Errorf("mint snapshot: %w", err)
	}
	took := time.Since(began)
	r.metrics.mints.WithLabelValues("ok").Inc()
	r.metrics.mintSeconds.Observe(took.Seconds())
	r.o.Logger.Info("minted a snapshot", "pos", s.Manifest.Pos, "infohash", s.Manifest.InfoHash,
		"bytes", s.Manifest.Size, "pairs", s.Manifest.Pairs, "took", took)
	return s, nil
}

func (r *Repo) mintNew(ctx context.Context, m Minter, claimed []byte, progress func(done, total int64)) (*Snapshot, error) {
	var file *mintFile
	defer func() { file.abort() }()
	info, err := m.Mint(ctx, func(info lmdbstore.SnapshotInfo) (io.Writer, error) {
		file.abort()
		var err error
		file, err = r.newMintFile(ctx, info, progress)
		return file, err
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	t, sum, err := file.finish()
	if err != nil {
		return nil, err
	}
	manifest := newManifest(info, t, sum)
	note, err := r.sign(&manifest, claimed)
	if err != nil {
		return nil, err
	}
	return r.publish(&manifest, note, t, file.path)
}

// mintFile is a snapshot while it is written, once to the disk and once to the
// hasher.
type mintFile struct {
	ctx      context.Context
	repo     *Repo
	path     string
	f        durable.File
	hash     *chunker.Hasher
	buf      *bufio.Writer // over write
	limit    *rate.Limiter // nil: none
	progress func(done, total int64)

	size    int64
	written int64
	flushed int64 // the kernel was told to write up to here
}

func (r *Repo) newMintFile(ctx context.Context, info lmdbstore.SnapshotInfo, progress func(done, total int64)) (*mintFile, error) {
	w := &mintFile{ctx: ctx, repo: r, progress: progress, size: info.Size, path: filepath.Join(r.dir, Name(info.Pos)+mintExt)}
	if free := durable.FreeSpace(r.dir); free < info.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes free; the snapshot needs %d: free some space or remove old snapshots",
			syscall.ENOSPC, r.dir, free, info.Size)
	}
	if r.o.MintRate > 0 {
		w.limit = rate.NewLimiter(rate.Limit(r.o.MintRate), mintBuffer)
	}
	w.buf = bufio.NewWriterSize(writerFunc(w.write), mintBuffer)
	var err error
	if w.hash, err = chunker.NewHasher(Name(info.Pos)+dataExt, info.Size); err != nil {
		return nil, err
	}
	if w.f, err = r.o.FS.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		w.hash.Abort()
		return nil, fmt.Errorf("create snapshot file: %w", err)
	}
	return w, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (w *mintFile) Write(p []byte) (int, error) { return w.buf.Write(p) }

// write passes bytes on as fast as the rate allows.
func (w *mintFile) write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:min(len(p), n+mintBuffer)]
		if w.limit != nil {
			if err := w.limit.WaitN(w.ctx, len(part)); err != nil {
				return n, err
			}
		}
		n, err = w.writePart(n, part)
	}
	return n, err
}

func (w *mintFile) writePart(n int, part []byte) (int, error) {
	if w.ctx.Err() != nil {
		return n, context.Cause(w.ctx)
	}
	if _, err := w.hash.Write(part); err != nil {
		return n, err
	}
	if _, err := w.f.WriteAt(part, w.written); err != nil {
		return n, fmt.Errorf("write snapshot: %w", err)
	}
	w.written += int64(len(part))
	w.repo.metrics.mintBytes.Add(float64(len(part)))
	// Without a push the kernel keeps gigabytes, and the fsync at the end has to
	// write them all while the disk stood idle before.
	if w.written-w.flushed >= writeback {
		startWriteback(w.f, w.flushed, w.written-w.flushed)
		w.flushed = w.written
	}
	if w.progress != nil {
		w.progress(w.written, w.size)
	}
	return n + len(part), nil
}

// finish returns once the file is on stable storage.
func (w *mintFile) finish() (*chunker.Torrent, [32]byte, error) {
	if err := w.buf.Flush(); err != nil {
		return nil, [32]byte{}, err
	}
	t, sum, err := w.hash.Finish()
	if err != nil {
		return nil, sum, err
	}
	if err := w.f.Sync(); err != nil {
		return nil, sum, fmt.Errorf("sync snapshot: %w", err)
	}
	return t, sum, w.f.Close()
}

// abort frees everything and removes the file if it was not published. It may
// be called at any time, and on nil.
func (w *mintFile) abort() {
	if w == nil {
		return
	}
	w.hash.Abort()
	w.f.Close()
	w.repo.o.FS.Remove(w.path)
}
