package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// AlteredError means that a snapshot's file is not the one that its manifest
// describes any more.
type AlteredError struct {
	Bad         []int // pieces, ascending
	Pieces      int   // of the snapshot
	PieceLength int64 // in bytes
	Size, Want  int64 // of the file, in bytes; Size is -1 if there is none
	Err         error // why the first bad piece could not be read, if it could not
}

func (e *AlteredError) Error() string {
	switch {
	case e.Size < 0:
		return "the file is missing"
	case len(e.Bad) == 0:
		return fmt.Sprintf("the file is %d bytes long; its manifest says %d", e.Size, e.Want)
	}
	text := fmt.Sprintf("the file is altered: %d of %d pieces are bad, the first at offset %d", len(e.Bad), e.Pieces, int64(e.Bad[0])*e.PieceLength)
	if e.Size != e.Want {
		text += fmt.Sprintf(", and it is %d bytes long instead of %d", e.Size, e.Want)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *AlteredError) Unwrap() error { return e.Err }

// scrubAhead is how many bytes a scrub may read at once, whatever its rate.
const scrubAhead = 1 << 20

// Scrub reads the snapshot's file, one piece after the other, and compares size
// and pieces with those that the manifest binds. It reads from the disk and not
// from memory, where the file system lets it. limit paces it, in bytes; nil: as
// fast as the disk is. What is wrong is an *AlteredError; pieces that can not be
// read are bad. Another error is ctx's, or says that the file could not be opened,
// which says nothing of what is in it.
func (s *Snapshot) Scrub(ctx context.Context, limit *rate.Limiter) error {
	f, err := openUncached(s.Path)
	if err != nil {
		return s.unopened(err)
	}
	defer f.Close()
	t := s.Torrent
	buf := aligned(int(min(t.PieceLength(), (t.Size()+pageBytes-1)/pageBytes*pageBytes)))
	var bad []int
	var first error
	for i := range t.Pieces() {
		data, err := readPiece(ctx, f, buf, int64(i)*t.PieceLength(), t.PieceSize(i), limit)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || !t.VerifyPiece(i, data) {
			if len(bad) == 0 {
				first = err
			}
			bad = append(bad, i)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return s.unopened(err)
	}
	if len(bad) > 0 || info.Size() != t.Size() {
		return s.altered(info.Size(), bad, first)
	}
	return nil
}

func (s *Snapshot) altered(size int64, bad []int, err error) error {
	return &AlteredError{
		Bad: bad, Pieces: s.Torrent.Pieces(), PieceLength: s.Torrent.PieceLength(), Size: size, Want: s.Manifest.Size, Err: err,
	}
}

// unopened is what an error of opening the file, or of asking for its size, says: it
// is damaged if it is missing or the disk does not give it. What else there may be, no
// descriptor left or no permission, is returned as it is.
func (s *Snapshot) unopened(err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !isDamage(err) {
		return err
	}
	return s.altered(-1, allOf(s.Torrent.Pieces()), unlessMissing(err))
}

// isDamage reports whether an error is the disk's, or the file system's of what is on
// it, and not of want or of rights.
func isDamage(err error) bool { return errors.Is(err, unix.EIO) || isCorrupt(err) }

func allOf(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// readPiece reads size bytes at off. A file that ends before is a short piece and
// no error. Offsets are multiples of a page, and so are lengths, as O_DIRECT wants
// them.
func readPiece(ctx context.Context, f *os.File, buf []byte, off, size int64, limit *rate.Limiter) ([]byte, error) {
	for n := int64(0); n < size; {
		part := buf[n:min(int64(len(buf)), n+scrubAhead)]
		if limit != nil {
			if err := limit.WaitN(ctx, int(min(int64(len(part)), size-n))); err != nil {
				return nil, err
			}
		}
		// Not f.ReadAt, which goes on at the odd offset where the file ends.
		got, err := unix.Pread(int(f.Fd()), part, off+n)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: err}
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		n += int64(got)
		if got%pageBytes != 0 || got == 0 {
			return buf[:min(n, size)], nil
		}
	}
	return buf[:size], nil
}

// NewScrubLimit returns what paces a Scrub to bytesPerSecond; 0: nothing does.
func NewScrubLimit(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), scrubAhead)
}

// pageBytes is what buffers of O_DIRECT are aligned to.
const pageBytes = 4096

// aligned returns n bytes that begin at a multiple of pageBytes.
func aligned(n int) []byte {
	b := make([]byte, n+pageBytes)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (pageBytes - 1))
	return b[skip : skip+n : skip+n]
}
