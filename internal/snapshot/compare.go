package snapshot

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// Comparer is what Compare needs of a store; *lmdbstore.Store is one.
type Comparer interface {
	Compare(ctx context.Context, c lmdbstore.Comparing) (lmdbstore.Compared, error)
}

// Compare compares a store with a snapshot of this Repo, whose position it has passed,
// by the log that it followed since. Each piece of the snapshot's file is compared with
// the torrent as it is read, so a difference is the store's; a piece that is not the
// torrent's is an *AlteredError. limit paces all that is read, in bytes. What else there
// is to say see lmdbstore.Store.Compare.
func (r *Repo) Compare(ctx context.Context, store Comparer, s *Snapshot, log *txlog.Log, limit *rate.Limiter) (lmdbstore.Compared, error) {
	ctx, done, err := r.enter(ctx)
	if err != nil {
		return lmdbstore.Compared{}, err
	}
	defer done()
	f, err := openUncached(s.Path)
	if err != nil {
		return lmdbstore.Compared{}, s.unopened(err)
	}
	defer f.Close()
	file := &verifiedFile{ctx: ctx, s: s, f: f, limit: limit}
	c, err := store.Compare(ctx, lmdbstore.Comparing{
		Want: s.Manifest.Pos, Size: s.Manifest.Size, PieceLength: s.Torrent.PieceLength(), Published: file, Log: log, Limit: limit,
	})
	if ctx.Err() != nil {
		return c, context.Cause(ctx)
	}
	return c, err
}

// verifiedFile reads a snapshot's file by whole pieces, and gives only what is the
// torrent's. It is not safe for concurrent use.
type verifiedFile struct {
	ctx   context.Context
	s     *Snapshot
	f     *os.File
	limit *rate.Limiter

	// The latest two, as a long value stands before the leaf that leads to it.
	pieces [2]verifiedPiece
	latest int
}

type verifiedPiece struct {
	known bool
	piece int
	data  []byte
	buf   []byte
}

// ReadAt implements io.ReaderAt.
func (v *verifiedFile) ReadAt(b []byte, off int64) (n int, err error) {
	t := v.s.Torrent
	for n < len(b) {
		at := off + int64(n)
		if at >= t.Size() {
			return n, io.EOF
		}
		piece := int(at / t.PieceLength())
		data, err := v.piece(piece)
		if err != nil {
			return n, err
		}
		n += copy(b[n:], data[at-int64(piece)*t.PieceLength():])
	}
	return n, nil
}

func (v *verifiedFile) piece(piece int) ([]byte, error) {
	for i := range v.pieces {
		if p := &v.pieces[i]; p.known && p.piece == piece {
			v.latest = i
			return p.data, nil
		}
	}
	v.latest = 1 - v.latest
	p, t := &v.pieces[v.latest], v.s.Torrent
	if p.known = false; p.buf == nil {
		p.buf = aligned(int(min(t.PieceLength(), (t.Size()+pageBytes-1)/pageBytes*pageBytes)))
	}
	var err error
	p.data, err = readPiece(v.ctx, v.f, p.buf, int64(piece)*t.PieceLength(), t.PieceSize(piece), v.limit)
	switch {
	case v.ctx.Err() != nil:
		return nil, context.Cause(v.ctx)
	case err != nil && !isDamage(err):
		return nil, err
	case err != nil || !t.VerifyPiece(piece, p.data):
		info, statErr := v.f.Stat()
		if statErr != nil {
			return nil, errors.Join(err, statErr)
		}
		return nil, v.s.altered(info.Size(), []int{piece}, err)
	}
	p.known, p.piece = true, piece
	return p.data, nil
}
