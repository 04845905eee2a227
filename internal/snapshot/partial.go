package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
)

// PartialFile is the partial file of a snapshot, of which pieces come from elsewhere
// than a fetch: none is written that is not good. It is not safe for concurrent use.
type PartialFile struct {
	torrent *chunker.Torrent
	f       durable.File
	get     func(ctx context.Context, piece int, buf []byte) error
	known   []bool // to be good
	buf     []byte // a piece

	// Asked are the pieces that get got.
	Asked int
}

// OpenPartial opens a snapshot's partial file, or makes it. get fills buf with a
// piece from somewhere else; what it gets is verified.
func (r *Repo) OpenPartial(m *Manifest, t *chunker.Torrent, get func(ctx context.Context, piece int, buf []byte) error) (*PartialFile, error) {
	path := r.Partial(m)
	if free := durable.FreeSpace(r.dir); free < m.Size {
		return nil, fmt.Errorf("%s has %d bytes free; the snapshot needs %d", r.dir, free, m.Size)
	}
	f, err := r.o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open partial file: %w", err)
	}
	return &PartialFile{torrent: t, f: f, get: get, known: make([]bool, t.Pieces()), buf: make([]byte, t.PieceLength())}, nil
}

// Close closes the file. It is not fsynced: who goes on with it reads it whole.
func (p *PartialFile) Close() error { return p.f.Close() }

// Reader returns the snapshot's file as it is to be: pieces that are missing are got
// when something of them is read.
func (p *PartialFile) Reader(ctx context.Context) io.ReaderAt { return partialReader{p, ctx} }

type partialReader struct {
	*PartialFile
	ctx context.Context
}

func (p partialReader) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		at := off + int64(n)
		if at >= p.torrent.Size() {
			return n, io.EOF
		}
		piece := int(at / p.torrent.PieceLength())
		if err := p.have(p.ctx, piece); err != nil {
			return n, err
		}
		left := int64(piece)*p.torrent.PieceLength() + p.torrent.PieceSize(piece) - at
		got, err := p.f.ReadAt(b[n:n+int(min(left, int64(len(b)-n)))], at)
		if n += got; err != nil {
			return n, err
		}
	}
	return n, nil
}

// have sees to it that a piece is good.
func (p *PartialFile) have(ctx context.Context, piece int) error {
	if p.known[piece] {
		return nil
	}
	data := p.buf[:p.torrent.PieceSize(piece)]
	at := int64(piece) * p.torrent.PieceLength()
	n, err := p.f.ReadAt(data, at)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read partial file: %w", err)
	}
	if !p.torrent.VerifyPiece(piece, data[:n]) {
		if err := p.get(ctx, piece, data); err != nil {
			return err
		}
		if !p.torrent.VerifyPiece(piece, data) {
			return errors.New("what came is not the piece")
		}
		if _, err := p.f.WriteAt(data, at); err != nil {
			return fmt.Errorf("write partial file: %w", err)
		}
		p.Asked++
	}
	p.known[piece] = true
	return nil
}

// Layer takes a file that should be the snapshot's, front to back, and keeps of it
// the pieces that are.
type Layer struct {
	p     *PartialFile
	piece int
	buf   []byte
	err   error

	Equal     int   // pieces that are good, here or before
	Different []int // pieces that have to come from elsewhere, ascending
}

// Layer returns a Layer for the whole file. Its End is to be called.
func (p *PartialFile) Layer() *Layer {
	return &Layer{p: p, buf: make([]byte, 0, p.torrent.PieceLength())}
}

// Write implements io.Writer. What is longer than the snapshot is dropped.
func (l *Layer) Write(b []byte) (n int, err error) {
	for n < len(b) && l.err == nil {
		if l.piece == l.p.torrent.Pieces() {
			return len(b), nil
		}
		size := int(l.p.torrent.PieceSize(l.piece))
		part := b[n:min(len(b), n+size-len(l.buf))]
		l.buf = append(l.buf, part...)
		n += len(part)
		if len(l.buf) == size {
			l.lay()
		}
	}
	return n, l.err
}

func (l *Layer) lay() {
	good := l.p.torrent.VerifyPiece(l.piece, l.buf)
	switch {
	case l.p.known[l.piece]:
		l.Equal++
	case good:
		l.Equal++
		l.p.known[l.piece] = true
		if _, err := l.p.f.WriteAt(l.buf, int64(l.piece)*l.p.torrent.PieceLength()); err != nil {
			l.err = fmt.Errorf("write partial file: %w", err)
		}
	default:
		l.Different = append(l.Different, l.piece)
	}
	l.buf = l.buf[:0]
	l.piece++
}

// End counts what did not come as different.
func (l *Layer) End() {
	for ; l.piece < l.p.torrent.Pieces(); l.piece++ {
		if l.p.known[l.piece] {
			l.Equal++
		} else {
			l.Different = append(l.Different, l.piece)
		}
	}
}
