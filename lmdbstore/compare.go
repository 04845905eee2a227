package lmdbstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path/filepath"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

// ErrIncomparable means that a store and a snapshot cannot be compared: nothing says
// what changed between them.
var ErrIncomparable = errors.New("the store and the snapshot cannot be compared")

// Comparing says what Compare compares with.
type Comparing struct {
	Want        txlog.Pos // the snapshot's
	Size        int64     // of its file, in bytes
	PieceLength int64
	// Published is the snapshot's file. Whoever gives it verifies the pieces as they
	// are read, and paces it. It is read front to back, but for long values.
	Published io.ReaderAt
	// Log has the entries from Want to where the store stands.
	Log *txlog.Log
	// Limit paces what else is read, in bytes. nil: as fast as it goes. It has to let
	// through 256 KiB at once.
	Limit *rate.Limiter
}

// Compared says what Compare found. After an error it says which Generation was read;
// with damage Damaged is at least a page, and Differ is known if all could be read.
type Compared struct {
	State             // at which the store was read
	Generation uint64 // that was read
	Bytes      int64  // read of the environment

	// Of the snapshot's pieces Live hold only pairs that the store was compared with,
	// Partly some, and File none: what was changed since the snapshot is in its file only.
	Pieces, Live, Partly, File int
	Pairs                      uint64 // of the snapshot that were compared
	Since                      uint64 // that were not

	Differ  []int  // pieces in which a pair is lacking, other or one more, ascending
	Damaged int64  // bytes of the snapshot's leaf pages with such pairs
	Key     []byte // of the first
}

// Err says how the store differs from the snapshot, nil if it does not.
func (c *Compared) Err() error {
	if len(c.Differ) == 0 {
		return nil
	}
	return fmt.Errorf("laid out as a published snapshot, %d of %d pieces are others than the snapshot's, from key %.80q on", len(c.Differ), c.Pieces, c.Key)
}

// Compare reads the whole current generation, as Scrub does, and compares it with a
// snapshot of a position that it has passed: of each pair that the log does not change
// in between it must hold what the snapshot does, and no others. As a snapshot's bytes
// follow from its pairs, that tells which pieces would come out otherwise if the store
// was laid out as it stood then, without doing so.
//
// Differences are no error; a pair or a page that is damaged is a *DamageError, and so
// is a digest that is not of the pairs. ErrIncomparable says that the store is before
// the snapshot, or the log does not reach back to it. Errors of Published are passed on.
//
// Reads and writes go on. If the environment is remapped or replaced meanwhile it
// starts over. The call takes one of MaxReaders, and 12 MiB of memory.
func (s *Store) Compare(ctx context.Context, c Comparing) (Compared, error) {
	if c.Limit == nil {
		c.Limit = rate.NewLimiter(rate.Inf, 0)
	}
	if !s.working() {
		return Compared{}, ErrClosed
	}
	defer s.work.Done()
	ctx, cancel := s.until(ctx)
	defer cancel()
	changed := newChanged(&c)
	for {
		var result Compared
		err := s.with(func(g *generation) (err error) {
			result, err = g.compare(ctx, &c, changed)
			result.Generation = g.number
			return err
		})
		switch {
		case err == nil:
			return result, nil
		case s.stopped.Err() != nil:
			return Compared{}, ErrClosed
		case errors.Is(err, errYield):
			s.options.Logger.Info("comparing with a snapshot starts over: the environment was remapped or replaced")
		default:
			return result, fmt.Errorf("compare with the snapshot at %s: %w", c.Want, err)
		}
	}
}

// compare is one attempt.
func (g *generation) compare(ctx context.Context, c *Comparing, changed *changed) (Compared, error) {
	if err := g.env.injury.get(); err != nil {
		return Compared{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Most of the log is read before there is a transaction that keeps pages from being
	// used again.
	if err := changed.follow(ctx, g.state.Load().Pos); err != nil {
		return Compared{}, err
	}
	where := filepath.Join(g.dir, dataFile)
	var from *disk
	p, err := g.pin(func() { cancel(errYield) }, func(file string) (source, int64, error) {
		var size int64
		var err error
		from, size, err = openDiskAt(ctx, file, c.Limit)
		return from, size, err
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Compared{}, g.env.note(damageIn(where, err))
	}
	defer p.close()
	m := &merger{Comparing: c, changed: changed, pieces: make([]pieceNotes, (c.Size+c.PieceLength-1)/c.PieceLength)}
	if m.State, _, err = stateOf(p.file); err == nil {
		if err := changed.follow(ctx, m.Pos); err != nil {
			return Compared{}, causeOr(ctx, err)
		}
		err = m.run(ctx, p)
	}
	result := m.result()
	result.Bytes = from.read.Load()
	if errors.Is(err, ErrDamaged) {
		result.Damaged = max(result.Damaged, mdbfile.PageSize)
	}
	switch {
	case ctx.Err() != nil:
		return Compared{}, context.Cause(ctx)
	case m.unread != nil:
		return result, m.unread
	case err != nil:
		return result, g.env.note(damageIn(where, err))
	}
	return result, nil
}

func causeOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// changedBits is the size of a set of changed keys, as a power of 2.
const changedBits = 26

// changed is the set of the keys that the log changes after a snapshot, however many.
// It takes keys for changed that are not, one in 2^changedBits for each in it: those are
// not compared, this time.
type changed struct {
	*Comparing
	upTo txlog.Pos // of the log
	seed maphash.Seed
	bits []uint64
}

func newChanged(c *Comparing) *changed {
	return &changed{Comparing: c, upTo: c.Want, seed: maphash.MakeSeed(), bits: make([]uint64, 1<<changedBits/64)}
}

func (c *changed) bit(key []byte) (word *uint64, bit uint64) {
	h := maphash.Bytes(c.seed, key) >> (64 - changedBits)
	return &c.bits[h/64], 1 << (h % 64)
}

func (c *changed) has(key []byte) bool {
	word, bit := c.bit(key)
	return *word&bit != 0
}

// follow adds what the log changes up to a position.
func (c *changed) follow(ctx context.Context, to txlog.Pos) error {
	switch head := c.Log.Head(); {
	case to.Seq < c.Want.Seq:
		return fmt.Errorf("%w: the store is at entry %d", ErrIncomparable, to.Seq)
	case to.Seq < c.upTo.Seq: // another generation
		clear(c.bits)
		c.upTo = c.Want
		return c.follow(ctx, to)
	case to.Seq > head.Seq:
		return fmt.Errorf("the store is at %s, and the log ends at %s", to, head)
	case to.Seq == c.upTo.Seq && to != c.upTo:
		return &txlog.DivergedError{Seq: to.Seq, Have: to.Hash, Want: c.upTo.Hash}
	}
	err := entriesBetween(ctx, c.Log, c.upTo, to, func(e *txlog.Entry) error {
		n := 0
		for _, op := range e.Ops {
			if op.Kind == txlog.Init {
				continue
			}
			word, bit := c.bit(op.Key)
			*word |= bit
			n += len(op.Key) + len(op.Value)
		}
		c.upTo = e.Pos()
		return pay(ctx, c.Limit, n)
	})
	if trimmed := (*txlog.TrimmedError)(nil); errors.As(err, &trimmed) {
		return fmt.Errorf("%w: %w", ErrIncomparable, err)
	}
	return err
}

// pieceNotes say what of a piece was done.
type pieceNotes uint8

const (
	pieceCompared pieceNotes = 1 << iota
	pieceSince
	pieceDiffers
)

// merger goes through an environment and the snapshot's file together, in key order.
type merger struct {
	*Comparing
	Compared
	changed *changed
	file    *mdbfile.Scanner
	more    bool  // file is at a pair
	unread  error // of the file
	torn    bool  // not all of the environment could be read
	pieces  []pieceNotes
	bad     uint64 // the latest page that differs
}

func (m *merger) run(ctx context.Context, p *pinned) error {
	if err := m.begin(); err != nil {
		return err
	}
	var sum sum
	err := p.each(ctx, func(c *mdbfile.Cursor) error {
		raw, err := c.Value()
		if err != nil {
			return err
		}
		key := c.Key()
		value, err := p.values.open(key, raw)
		if err != nil {
			return &DamageError{p.where, bytes.Clone(key), err}
		}
		sum.add(key, value)
		return m.live(key, value)
	})
	if err != nil {
		m.torn = true
		return err
	}
	for m.more { // the environment ends before
		if err := m.absent(); err != nil {
			return err
		}
	}
	if !p.values.plain {
		err = sum.matches(m.State)
	}
	return err
}

// begin looks at what the file says of itself.
func (m *merger) begin() error {
	f, err := mdbfile.Open(m.Published, m.Size)
	if err != nil {
		return m.failed(err)
	}
	state, format, err := stateOf(f)
	switch {
	case err != nil:
		return m.failed(err)
	case format != Format:
		return m.failed(fmt.Errorf("%w: the snapshot has format %d", ErrIncomparable, format))
	case state.Pos != m.Want || state.Dataset != m.Dataset:
		return m.failed(fmt.Errorf("the snapshot is of dataset %s at %s", state.Dataset, state.Pos))
	}
	// The last two pages are meta's leaf and the names of the databases.
	m.file = mdbfile.NewScanner(m.Published, mdbfile.FirstPage, uint64(m.Size)/mdbfile.PageSize-2)
	return m.next()
}

// failed notes an error that says nothing of the environment.
func (m *merger) failed(err error) error {
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("the snapshot's file: %v", err) // which is not this store's damage
	}
	m.unread = err
	return err
}

func (m *merger) next() error {
	m.more = m.file.Next()
	if err := m.file.Err(); err != nil {
		return m.failed(err)
	}
	return nil
}

// live takes the next pair of the environment.
func (m *merger) live(key, value []byte) error {
	for m.more && bytes.Compare(m.file.Key(), key) < 0 {
		if err := m.absent(); err != nil {
			return err
		}
	}
	switch {
	case !m.more || !bytes.Equal(m.file.Key(), key):
		if !m.changed.has(key) {
			m.noteAt(m.file.Page(), pieceDiffers) // about where it would stand
			m.differs(key)
		}
		return nil
	case m.changed.has(key):
		m.since()
		return m.next()
	}
	same := m.file.ValueLen() == checkedLen+len(value)
	if same {
		published, err := m.file.Value()
		if err != nil {
			return m.failed(err)
		}
		same = bytes.Equal(published[checkedLen:], value)
	}
	m.compared(key, same)
	return m.next()
}

// absent takes the next pair of the file, which the environment has not.
func (m *merger) absent() error {
	if m.changed.has(m.file.Key()) {
		m.since()
	} else {
		m.compared(m.file.Key(), false)
	}
	return m.next()
}

func (m *merger) since() {
	m.Since++
	m.note(pieceSince)
}

func (m *merger) compared(key []byte, same bool) {
	m.Pairs++
	m.note(pieceCompared)
	if !same {
		m.note(pieceDiffers)
		m.differs(key)
	}
}

// note notes what was done with the pair at which the file is.
func (m *merger) note(n pieceNotes) {
	m.noteAt(m.file.Page(), n)
	first, pages := m.file.Overflow()
	for i := range (pages*mdbfile.PageSize + uint64(m.PieceLength) - 1) / uint64(m.PieceLength) {
		m.noteAt(first+i*uint64(m.PieceLength)/mdbfile.PageSize, n)
	}
	if pages > 0 {
		m.noteAt(first+pages-1, n)
	}
}

func (m *merger) noteAt(page uint64, n pieceNotes) {
	if i := page * mdbfile.PageSize / uint64(m.PieceLength); i < uint64(len(m.pieces)) {
		m.pieces[i] |= n
	}
}

// differs notes a key at which environment and snapshot differ.
func (m *merger) differs(key []byte) {
	if m.Key == nil {
		m.Key = bytes.Clone(key)
	}
	if page := m.file.Page(); page != m.bad || m.Damaged == 0 {
		m.bad = page
		m.Damaged += mdbfile.PageSize
	}
}

// result counts the pieces.
func (m *merger) result() Compared {
	c := m.Compared
	c.Pieces = len(m.pieces)
	if m.torn { // a damaged page stands for any keys
		c.Key, c.Damaged = nil, 0
		return c
	}
	for i, n := range m.pieces {
		if n&pieceDiffers != 0 {
			c.Differ = append(c.Differ, i)
		}
		switch {
		case n&pieceSince == 0:
			c.Live++
		case n&pieceCompared != 0:
			c.Partly++
		default:
			c.File++
		}
	}
	return c
}
