package chunker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// checkBuffer is how much one core reads at a time, in bytes.
const checkBuffer = 256 << 10

// Check reads the file, on all cores, and returns for each piece whether it is
// good. A file
// that is too short has bad pieces; a longer one is not noticed here (compare
// sizes first). An error is one of reading or of ctx. progress, if not nil, is
// called with the bytes read so far, from one goroutine at a time.
func (t *Torrent) Check(ctx context.Context, r io.ReaderAt, progress func(done int64)) ([]bool, error) {
	good := make([]bool, t.Pieces())
	var (
		next atomic.Int64 // the piece to be checked next
		mu   sync.Mutex   // guards done and calls of progress
		done int64
	)
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), t.Pieces()) {
		g.Go(func() error {
			buf := make([]byte, min(checkBuffer, t.pieceLength))
			for {
				i := int(next.Add(1) - 1)
				if i >= len(good) {
					return nil
				}
				ok, err := t.checkPiece(ctx, r, i, buf)
				if err != nil {
					return fmt.Errorf("check piece %d of %s: %w", i, t.name, err)
				}
				good[i] = ok
				if progress != nil {
					mu.Lock()
					done += t.PieceSize(i)
					progress(done)
					mu.Unlock()
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return good, nil
}

func (t *Torrent) checkPiece(ctx context.Context, r io.ReaderAt, i int, buf []byte) (bool, error) {
	sum := sha256.New()
	off := int64(i) * t.pieceLength
	for left := t.PieceSize(i); left > 0; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), left)], off)
		sum.Write(buf[:n])
		off += int64(n)
		left -= int64(n)
		if left > 0 && errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
	}
	return [sha256.Size]byte(sum.Sum(nil)) == t.PieceSHA256(i), nil
}
