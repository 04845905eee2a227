package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
)

// store is one torrent's file: reads and writes through one descriptor, so that
// the file may be renamed, and which pieces are good, in memory. It is not
// mapped: a file that somebody cuts short must not crash the process.
//
// Pieces come in two ways at once: block by block from the torrent client, which
// sees the store as its storage, and whole, by put. Whatever the way, a piece
// becomes good here and nowhere else, once its hash was right, and what is good
// is not written again.
//
// Good means that its SHA-256 is the one in the torrent, which the manifest
// binds. It is computed from the very bytes that are written, block by block, so
// that a piece whose blocks came in order is not read again.
type store struct {
	torrent  *chunker.Torrent
	file     durable.File
	watcher  storeWatcher
	incoming []incoming // by piece

	complete chan struct{} // closed once every piece is good

	mu     sync.Mutex // guards what follows
	good   []bool
	told   []bool // that it is missing, if it is; nil: all are
	done   int64  // bytes of good pieces
	pieces int    // good ones
	ended  bool   // complete is closed
}

// storeWatcher hears what happens to a store: of a good piece before it counts
// as such. It may ask the store what is good, but not write to it.
type storeWatcher interface {
	// pieceChecked: all blocks of a piece came from the client's peers, and it
	// was hashed.
	pieceChecked(piece int, good bool)
	// pieceArrived: a piece came whole. If it is good, blocks of it that the
	// client received are of no use, nor is the piece itself unless it was missing.
	pieceArrived(piece int, from torrent.PeerID, good, missing bool)
	// storeFailed: what was received can not be written or read back.
	storeFailed(error)
	// storeDamaged: pieces that were good can not be read any more.
	storeDamaged(error)
}

func newStore(t *chunker.Torrent, f durable.File, good []bool, w storeWatcher) *store {
	s := &store{
		torrent: t, file: f, watcher: w, incoming: make([]incoming, t.Pieces()),
		complete: make(chan struct{}), good: good,
	}
	for i, ok := range good {
		if ok {
			s.done += t.PieceSize(i)
			s.pieces++
		}
	}
	s.finishIfDone()
	return s
}

// openPartial opens the file of a fetch and finds the good pieces in it. It
// gives the file its full length, after a look at whether the disk can hold it.
func openPartial(ctx context.Context, fsys durable.FS, path string, t *chunker.Torrent) (_ durable.File, good []bool, err error) {
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	if size == 0 {
		good = make([]bool, t.Pieces())
	} else if good, err = t.Check(ctx, f, nil); err != nil {
		return nil, nil, err
	}
	if err := checkRoom(path, t.Size()); err != nil {
		return nil, nil, err
	}
	if size != t.Size() {
		if err := f.Truncate(t.Size()); err != nil {
			return nil, nil, err
		}
	}
	return f, good, nil
}

// verified returns how many bytes and pieces are good.
func (s *store) verified() (bytes int64, pieces int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done, s.pieces
}

func (s *store) isGood(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.good[i]
}

// conceal has the client not know which pieces are missing but of those that tell names.
func (s *store) conceal() { s.told = make([]bool, len(s.good)) }

func (s *store) tell(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[i] = true
}

func (s *store) mark(i int, good bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good[i] == good {
		return
	}
	s.good[i] = good
	if good {
		s.done += s.torrent.PieceSize(i)
		s.pieces++
	} else {
		s.done -= s.torrent.PieceSize(i)
		s.pieces--
	}
	s.finishIfDone()
}

func (s *store) finishIfDone() {
	if s.done == s.torrent.Size() && !s.ended {
		s.ended = true
		close(s.complete)
	}
}

func (s *store) close() error { return s.file.Close() }

// OpenTorrent implements storage.ClientImpl. The file is closed by the holding,
// which outlives the client's use of it.
func (s *store) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl { return storePiece{s, p.Index()} },
		Close: func() error { return nil },
	}, nil
}

// incoming is a piece while it comes block by block.
type incoming struct {
	mu   sync.Mutex // held while the piece's bytes are written or hashed; before store.mu
	sum  hash.Hash  // of its first upTo bytes, as they were written; nil if upTo is 0
	upTo int64
}

// wrote follows a write at off. Only what continues the hashed bytes is hashed
// now. Should some of those have been written anew, they are read again later.
func (in *incoming) wrote(b []byte, off int64) {
	switch {
	case off < in.upTo:
		in.forget()
	case off == in.upTo:
		if in.sum == nil {
			in.sum = sha256.New()
		}
		in.sum.Write(b)
		in.upTo += int64(len(b))
	}
}

func (in *incoming) forget() { in.sum, in.upTo = nil, 0 }

// storePiece implements storage.PieceImpl and storage.SelfHashing.
type storePiece struct {
	*store
	i int
}

func (p storePiece) offset() int64 { return int64(p.i) * p.torrent.PieceLength() }

// ReadAt reads what a peer asked for.
func (p storePiece) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.file.ReadAt(b, p.offset()+off)
	if n < len(b) && p.isGood(p.i) {
		p.damaged(p.i, err)
	}
	return n, err
}

// damaged marks a piece that can not be read, and if the file was cut short all
// others that it lacks, so that peers are told once.
func (s *store) damaged(i int, err error) {
	s.mark(i, false)
	if size, serr := s.file.Size(); serr == nil {
		for j := range s.good {
			if int64(j)*s.torrent.PieceLength()+s.torrent.PieceSize(j) > size {
				s.mark(j, false)
			}
		}
	}
	s.watcher.storeDamaged(err)
}

// bad returns the pieces that are not good.
func (s *store) bad() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bad []int
	for i, good := range s.good {
		if !good {
			bad = append(bad, i)
		}
	}
	return bad
}

// WriteAt takes a block. One that comes too late is dropped: the client's peers
// must not overwrite what is good.
func (p storePiece) WriteAt(b []byte, off int64) (int, error) {
	in := &p.incoming[p.i]
	in.mu.Lock()
	defer in.mu.Unlock()
	if p.isGood(p.i) {
		return len(b), nil
	}
	n, err := p.file.WriteAt(b, p.offset()+off)
	if err != nil {
		in.forget()
		p.watcher.storeFailed(err)
		return n, err
	}
	in.wrote(b, off)
	return n, nil
}

// put takes a whole piece, which came another way than through the client. What
// is not the piece is not written. The caller tells the client of a good one
// (Piece.UpdateCompletion), which then offers it.
func (s *store) put(i int, data []byte, from torrent.PeerID) (good bool, err error) {
	if !s.torrent.VerifyPiece(i, data) {
		s.watcher.pieceArrived(i, from, false, !s.isGood(i))
		return false, nil
	}
	in := &s.incoming[i]
	in.mu.Lock()
	defer in.mu.Unlock()
	missing := !s.isGood(i)
	if missing {
		in.forget()
		if _, err := s.file.WriteAt(data, int64(i)*s.torrent.PieceLength()); err != nil {
			err = fmt.Errorf("write piece %d: %w", i, err)
			s.watcher.storeFailed(err)
			return true, err
		}
	}
	s.watcher.pieceArrived(i, from, true, missing)
	s.mark(i, true)
	return true, nil
}

// MarkComplete and MarkNotComplete tell the client's opinion: SelfHash formed
// it, and a piece may have come another way since.
func (p storePiece) MarkComplete() error    { return nil }
func (p storePiece) MarkNotComplete() error { return nil }

func (p storePiece) Completion() storage.Completion {
	p.mu.Lock()
	defer p.mu.Unlock()
	good := p.good[p.i]
	return storage.Completion{Ok: good || p.told == nil || p.told[p.i], Complete: good}
}

var hashBuffers = sync.Pool{New: func() any { return new([blockSize]byte) }}

// SelfHash verifies a piece whose blocks have all been written. The client wants
// to know the SHA-1, to compare it with the one in the torrent. It gets that one
// if the SHA-256 is right: both lists were made from the same bytes and are
// bound by the manifest, the one by the infohash and the other by the piece
// root, so a piece with the right SHA-256 has the right SHA-1; and a piece with
// only the right SHA-1 is not to be accepted.
func (p storePiece) SelfHash() (metainfo.Hash, error) {
	in := &p.incoming[p.i]
	in.mu.Lock()
	defer in.mu.Unlock()
	if p.isGood(p.i) { // put was faster
		return p.torrent.PieceSHA1(p.i), nil
	}
	defer in.forget()
	if err := p.readBack(in); err != nil {
		err = fmt.Errorf("read back piece %d: %w", p.i, err)
		p.watcher.storeFailed(err)
		return metainfo.Hash{}, err
	}
	good := [sha256.Size]byte(in.sum.Sum(nil)) == p.torrent.PieceSHA256(p.i)
	p.watcher.pieceChecked(p.i, good)
	if !good {
		return metainfo.Hash{}, nil // the SHA-1 of nothing known
	}
	p.mark(p.i, true)
	return p.torrent.PieceSHA1(p.i), nil
}

// readBack hashes what was not hashed when it was written, because it came
// before what precedes it in the piece.
func (p storePiece) readBack(in *incoming) error {
	size := p.torrent.PieceSize(p.i)
	if in.upTo == size {
		return nil
	}
	buf := hashBuffers.Get().(*[blockSize]byte)
	defer hashBuffers.Put(buf)
	for in.upTo < size {
		b := buf[:min(blockSize, size-in.upTo)]
		if n, err := p.file.ReadAt(b, p.offset()+in.upTo); n < len(b) {
			return err
		}
		in.wrote(b, in.upTo)
	}
	return nil
}

// lacksAnyOf reports whether one of the pieces is missing here.
func (s *store) lacksAnyOf(pieces []bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, has := range pieces {
		if has && !s.good[i] {
			return true
		}
	}
	return false
}
