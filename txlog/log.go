package txlog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/qs-peer/qs-peer/internal/durable"
)

const (
	defaultSegmentBytes = 64 << 20
	minSegmentBytes     = 4 << 10

	dirPerm  = 0o750
	filePerm = 0o640

	// writerEpoch is the epoch of entries made by Append.
	writerEpoch = 1
)

// Options configure a log. The zero value is ready to use.
type Options struct {
	// SegmentBytes is the size at which the tail is sealed and a new segment
	// begun. Default 64 MiB, least 4 KiB.
	SegmentBytes int64
	// Now is the writer's clock. Default time.Now.
	Now func() time.Time
	// FS is where the log lives. Default durable.OS.
	FS durable.FS
	// Logger gets truncations and rotations. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_log_* metrics. Default: none.
	Registerer prometheus.Registerer
	// Repair says that others hold this log, too: what is damaged is set aside,
	// and leaves a Hole to be filled from them, instead of being refused.
	Repair bool
	// Damaged, if not nil, hears of everything that was cut off or set aside, and,
	// whenever it is met, of damage that stays. It is called by whoever met it, Open
	// included, and must not call the log.
	Damaged func(Damage)
}

func (o *Options) validate() error {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.SegmentBytes < minSegmentBytes {
		return fmt.Errorf("log segments of %d bytes are too small; the least is %d", o.SegmentBytes, minSegmentBytes)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FS == nil {
		o.FS = durable.OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Damaged == nil {
		o.Damaged = func(Damage) {}
	}
	return nil
}

// Log is an open log. Its methods may be called concurrently.
//
// Locks are taken in the order writing, mu; queue.mu is taken alone.
type Log struct {
	dir     string
	o       Options
	metrics *metrics
	queue   queue
	stopped chan struct{} // closed when the writer goroutine has returned

	// writing is held by whoever changes files: the writer goroutine for each
	// batch, Create, Reset, Trim, Fill, Close, and who sets damage aside. It guards
	// file, marked and revived.
	writing sync.Mutex
	file    durable.File // of the last segment; nil while the log is empty
	marked  int64        // up to here the last segment needs no sync mark
	revived time.Time    // when a failed log was last tried to be opened again

	mu     sync.Mutex // guards state and the size of every segment
	state  state
	change chan struct{} // closed, and replaced, when state changes
}

// state is what readers of a Log see.
type state struct {
	dataset    DatasetID
	generation uint64
	old        []*segment // oldest first: what is kept before the last hole; that one follows the last of them
	segments   []*segment // oldest first, behind the last hole; the last one is the tail
	head       Pos
	headNanos  int64 // time of the entry at head; 0 when it is not known
	failed     error
	closed     bool
}

func (s *state) tail() *segment { return s.segments[len(s.segments)-1] }

func (s *state) first() uint64 {
	if len(s.segments) == 0 {
		return 0
	}
	return s.segments[0].first
}

// all returns every segment that is kept, oldest first.
func (s *state) all() []*segment {
	return append(s.old[:len(s.old):len(s.old)], s.segments...)
}

func (s *state) bytes() (n int64) {
	for _, seg := range s.all() {
		n += seg.size
	}
	return n
}

// usable returns why nothing can be written.
func (s *state) usable() error {
	if s.closed {
		return ErrClosed
	}
	return s.failed
}

// Open opens the log in dir, creating the directory if need be. It truncates a
// torn tail; damage anywhere else is a *CorruptError (with Options.Repair it is
// set aside), and a log of a newer version ErrNewerFormat. A new log is empty:
// begin it with Create (a new dataset) or Reset (continue at a position).
//
// Open verifies every entry of the last segment, and of the others the header
// and that they follow each other. Entries of those are verified when they are
// read, or by Verify.
//
// Who opens a log must be the only one to do so; the caller holds a lock.
func Open(dir string, o Options) (*Log, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	l := &Log{
		dir:     dir,
		o:       o,
		stopped: make(chan struct{}),
		change:  make(chan struct{}),
		queue:   queue{wake: make(chan struct{}, 1), room: semaphore.NewWeighted(maxQueue)},
	}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("open log %s: %w", dir, err)
	}
	m, err := newMetrics(o.Registerer, l)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log %s: %w", dir, err), l.closeFile())
	}
	l.metrics = m
	go l.run()
	return l, nil
}

// Create begins a new dataset: it writes entry 1 to an empty log. A crash in
// the middle leaves an empty log or the new one.
func (l *Log) Create(id DatasetID) (Pos, error) {
	if id.IsZero() {
		return Pos{}, errors.New("create log: the dataset id is zero")
	}
	e, err := Seal(Pos{}, writerEpoch, l.o.Now(), []Op{{Kind: Init, Value: id[:]}})
	if err != nil {
		return Pos{}, fmt.Errorf("create log: %w", err)
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	st, err := l.usable()
	if err != nil {
		return Pos{}, err
	}
	if len(st.segments) > 0 {
		return Pos{}, fmt.Errorf("create log: it holds dataset %s already, up to entry %d", st.dataset, st.head.Seq)
	}
	h := newHeader(id, st.generation+1, Pos{}, 0)
	if err := l.replace(h, e.frame, e.Pos(), frameNanos(e.frame)); err != nil {
		return Pos{}, fmt.Errorf("create log: %w", err)
	}
	return e.Pos(), nil
}

// Reset drops every entry and continues the log of dataset id after base, as a
// replica does that took a snapshot at base. A crash in the middle leaves
// either the old log or the new one. Readers of the old log get a
// *TrimmedError.
func (l *Log) Reset(id DatasetID, base Pos) error {
	if id.IsZero() {
		return errors.New("reset log: the dataset id is zero")
	}
	if base.Seq == 0 && !base.IsZero() {
		return fmt.Errorf("reset log: position %s is before entry 1, but has a hash", base)
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.reset(id, base)
}

func (l *Log) reset(id DatasetID, base Pos) error {
	st, err := l.usable()
	if err != nil {
		return err
	}
	if err := l.replace(newHeader(id, st.generation+1, base, 0), nil, base, 0); err != nil {
		return fmt.Errorf("reset log to entry %d: %w", base.Seq, err)
	}
	l.o.Logger.Info("log reset", "dataset", id, "base", base, "dropped", st.head)
	return nil
}

// replace makes one new segment, which holds frames up to head, the whole log.
// The caller holds writing.
func (l *Log) replace(h header, frames []byte, head Pos, nanos int64) error {
	st := l.snapshot()
	old := st.all()
	seg := newSegment(l.dir, h, int64(segmentHeader+len(frames)))
	// In two steps, because until the segment has its name the old log goes on,
	// and from then on only the new one may.
	staged := seg.path + stagedSuffix
	if err := durable.WriteFile(l.o.FS, staged, append(h.encode(), frames...), filePerm); err != nil {
		return err
	}
	if err := durable.Rename(l.o.FS, staged, seg.path); err != nil {
		return l.fail(err)
	}
	f, err := l.o.FS.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return l.fail(err)
	}
	if err := l.closeFile(); err != nil {
		l.o.Logger.Warn("closing a dropped log segment failed", "err", err)
	}
	l.file, l.marked = f, segmentHeader
	l.update(func(s *state) {
		s.dataset, s.generation = h.dataset, h.generation
		s.old, s.segments = nil, []*segment{seg}
		s.head, s.headNanos = head, nanos
	})
	for _, s := range old {
		l.dropFill(s.gap)
		if s.path == seg.path {
			continue
		}
		// The new generation outranks what stays, and the next Open removes it.
		if err := l.o.FS.Remove(s.path); err != nil {
			l.o.Logger.Warn("removing a dropped log segment failed", "segment", s.name(), "err", err)
		}
	}
	return nil
}

// Dataset returns the dataset's id, zero while the log is empty.
func (l *Log) Dataset() DatasetID { return l.snapshot().dataset }

// Head returns the last position on stable storage (after a Reset: its base).
func (l *Log) Head() Pos { return l.snapshot().head }

// HeadTime returns the writer's clock in the entry at Head, zero if that entry
// is not held.
func (l *Log) HeadTime() time.Time {
	s := l.snapshot()
	if s.headNanos == 0 || s.head.Seq < s.first() {
		return time.Time{}
	}
	return time.Unix(0, s.headNanos).UTC()
}

// Changed returns a channel that is closed at the next change of what Head,
// First or Dataset return, and when the log is closed or fails.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change
}

// First returns the seq of the first entry that a Reader can still return,
// which is Head().Seq+1 when the log holds none. 0 means that the log is empty
// and has no base.
func (l *Log) First() uint64 {
	s := l.snapshot()
	return s.first()
}

// Base returns the position before First: a Reader can start there. It is the
// zero Pos while the log is empty.
func (l *Log) Base() Pos {
	s := l.snapshot()
	if len(s.segments) == 0 {
		return Pos{}
	}
	return s.segments[0].base()
}

// Bytes returns the size of all segments on disk.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.bytes()
}

// Trim removes sealed segments all of whose entries have seq ≤ upTo, and
// returns the new First. Entries after upTo are always kept.
func (l *Log) Trim(upTo uint64) (first uint64, err error) {
	for {
		more, err := l.trimOne(upTo)
		if err != nil || !more {
			return l.First(), err
		}
	}
}

// trimOne removes the oldest segment if it may. It makes that durable before the
// next one goes, so that a crash leaves no gap.
func (l *Log) trimOne(upTo uint64) (more bool, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	st := l.snapshot()
	if st.closed {
		return false, ErrClosed
	}
	all := st.all()
	if len(all) < 2 || all[1].base().Seq > upTo {
		return false, nil
	}
	oldest := all[0]
	l.update(func(s *state) {
		if len(s.old) > 0 {
			s.old = s.old[1:]
		} else {
			s.segments = s.segments[1:]
		}
	})
	if err := durable.Remove(l.o.FS, oldest.path); err != nil {
		// Unless it is gone for sure it is kept: were the next one to go before it, that
		// would be a gap.
		if _, missing := l.o.FS.Stat(oldest.path); !errors.Is(missing, fs.ErrNotExist) {
			l.update(func(s *state) { s.old, s.segments = st.old, st.segments })
		}
		return false, fmt.Errorf("trim log: %w", err)
	}
	l.dropFill(oldest.gap)
	l.o.Logger.Debug("log segment trimmed", "segment", oldest.name())
	return true, nil
}

// Close releases the log. What waits in Append gets ErrClosed. It may be called
// twice.
func (l *Log) Close() error {
	l.queue.close()
	<-l.stopped
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.snapshot().closed {
		return nil
	}
	l.update(func(s *state) { s.closed = true })
	l.metrics.unregister()
	if err := l.closingMark(); err != nil {
		// Nothing depends on it; the next Open truncates what there is of it.
		l.o.Logger.Warn("ending the log with a sync mark failed", "err", err)
	}
	if err := l.closeFile(); err != nil {
		return fmt.Errorf("close log %s: %w", l.dir, err)
	}
	return nil
}

// closingMark proves the last batch, so that damage to it is noticed.
func (l *Log) closingMark() error {
	st := l.snapshot()
	if l.file == nil || st.failed != nil || st.tail().size == l.marked {
		return nil
	}
	if _, err := l.file.WriteAt(appendMark(nil, st.tail().salt, st.tail().size), st.tail().size); err != nil {
		return err
	}
	return l.file.Sync()
}

func (l *Log) closeFile() error {
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return f.Close()
}

func (l *Log) snapshot() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// update changes the state and wakes who waits for that.
func (l *Log) update(change func(*state)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.state)
	close(l.change)
	l.change = make(chan struct{})
}

// fail stops the log and returns what every Append returns until it could be
// opened again (usable). The caller holds writing.
func (l *Log) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	l.update(func(s *state) { s.failed = err })
	l.revived = time.Now()
	l.o.Logger.Error("log stopped: nothing is appended until it can be opened again", "err", cause)
	return err
}
