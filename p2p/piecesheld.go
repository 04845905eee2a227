package p2p

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/qs-peer/qs-peer/chunker"
)

func (s *Swarm) have(ih chunker.InfoHash) ([]bool, error) {
	st, err := s.held(ih)
	if err != nil {
		return nil, err
	}
	return st.whichGood(), nil
}

func (s *Swarm) holds(ih chunker.InfoHash, index int) error {
	st, err := s.held(ih)
	if err != nil {
		return err
	}
	return st.holds(index)
}

func (s *Swarm) open(ih chunker.InfoHash, index int) (*openPiece, error) {
	st, err := s.held(ih)
	if err != nil {
		return nil, err
	}
	return st.open(index)
}

func (s *Swarm) asker(name string) (p Peer, near bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, listed := s.roster[peerID(name)]
	return p, listed && p.Colo == s.o.Colo
}

// held returns the file of a torrent.
func (s *Swarm) held(ih chunker.InfoHash) (*store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.holdings[ih]; h != nil && h.store != nil {
		return h.store, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNotHeld, ih)
}

// whichGood returns which pieces are good.
func (s *store) whichGood() []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.good)
}

// openPiece is a good piece, opened for one reader, who closes it. It can be
// read to its end even if the torrent is dropped meanwhile.
type openPiece struct {
	store *store
	index int
	size  int64
	sent  int64 // how far WriteTo came

	// file stands where sent says. It is nil if another descriptor of the
	// store's file can not be had; then the store's is read.
	file *os.File
}

func (s *store) holds(index int) error {
	if index >= s.torrent.Pieces() {
		return fmt.Errorf("%w: piece %d: the snapshot has %d", ErrProtocol, index, s.torrent.Pieces())
	}
	if !s.isGood(index) {
		return fmt.Errorf("%w: piece %d", ErrNotHeld, index)
	}
	return nil
}

func (s *store) open(index int) (*openPiece, error) {
	if err := s.holds(index); err != nil {
		return nil, err
	}
	p := &openPiece{store: s, index: index, size: s.torrent.PieceSize(index), file: reopen(s.file)}
	if p.file != nil {
		if _, err := p.file.Seek(p.offset(), io.SeekStart); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	// Most damage shows before an answer is promised.
	if err := p.probe(p.size-1, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: piece %d: %w", ErrNotHeld, index, err), p.close())
	}
	return p, nil
}

// reopen opens a file once more, with a position of its own, whatever it is
// called by now. It returns nil where that is not possible.
func reopen(f any) *os.File {
	c, ok := f.(syscall.Conn)
	if !ok {
		return nil
	}
	sc, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var again *os.File
	err = sc.Control(func(fd uintptr) { again, _ = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	if err != nil {
		return nil
	}
	return again
}

func (p *openPiece) offset() int64 { return int64(p.index) * p.store.torrent.PieceLength() }

// errUnreadable means that a piece that was good can not be read.
var errUnreadable = errors.New("the piece can not be read any more")

// writeTo writes at most n bytes of the rest to w. If w is a connection without
// TLS, or net/http's for one, the bytes do not pass through this process
// (sendfile). An error about the file, not about w, is errUnreadable: the piece
// is then marked as damaged.
func (p *openPiece) writeTo(w io.Writer, n int64) (int64, error) {
	n = min(n, p.size-p.sent)
	var r io.Reader = p.file
	if p.file == nil {
		r = io.NewSectionReader(p.store.file, p.offset()+p.sent, n)
	}
	// Nothing may stand between the file and the connection but this reader.
	written, err := io.Copy(w, &io.LimitedReader{R: r, N: n})
	start := p.sent
	p.sent += written
	if written == n && err == nil {
		return written, nil
	}
	if unreadable := p.probe(start, n); unreadable != nil {
		return written, unreadable
	}
	if err == nil {
		err = io.ErrShortWrite
	}
	return written, err
}

// probe reads a part of the piece, to tell whether it can be read.
func (p *openPiece) probe(off, n int64) error {
	var r io.ReaderAt = p.store.file
	if p.file != nil {
		r = p.file
	}
	got, err := io.Copy(io.Discard, io.NewSectionReader(r, p.offset()+off, n))
	if got == n {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	if !errors.Is(err, os.ErrClosed) && p.store.isGood(p.index) { // or the torrent was dropped
		p.store.damaged(p.index, err)
	}
	return fmt.Errorf("%w: %w", errUnreadable, err)
}

func (p *openPiece) close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}
