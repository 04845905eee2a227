package txlog

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// Seal makes the entry that follows prev: it checks the limits, encodes and
// hashes. A transaction without operations is ErrEmptyTransaction.
func Seal(prev Pos, epoch uint64, at time.Time, ops []Op) (Entry, error) { panic("unwritten") }

// Decode parses one whole frame and verifies its hash. The entry points into
// frame, which must not change afterwards.
func Decode(frame []byte) (Entry, error) { panic("unwritten") }

// ReadFrame reads one frame from r, checking its length before it allocates.
// At the end of r, between frames, it returns io.EOF; within one,
// io.ErrUnexpectedEOF.
func ReadFrame(r io.Reader) ([]byte, error) { panic("unwritten") }

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
}

// Log is an open log. Its methods may be called concurrently.
type Log struct{}

// Open opens the log in dir, creating the directory if need be. It truncates a
// torn tail; damage anywhere else is a *CorruptError. A new log is empty: begin
// it with Create (a new dataset) or Reset (continue at a position).
func Open(dir string, o Options) (*Log, error) { panic("unwritten") }

// Create begins a new dataset: it writes entry 1 to an empty log.
func (l *Log) Create(id DatasetID) (Pos, error) { panic("unwritten") }

// Reset drops every entry and continues the log of dataset id after base, as a
// replica does that took a snapshot at base. A crash in the middle leaves
// either the old log or the new one.
func (l *Log) Reset(id DatasetID, base Pos) error { panic("unwritten") }

// Dataset returns the dataset's id, zero while the log is empty.
func (l *Log) Dataset() DatasetID { panic("unwritten") }

// Head returns the last position on stable storage (after a Reset: its base).
func (l *Log) Head() Pos { panic("unwritten") }

// HeadTime returns the writer's clock in the entry at Head, zero if that entry
// is not held.
func (l *Log) HeadTime() time.Time { panic("unwritten") }

// First returns the seq of the first entry that a Reader can still return,
// which is Head().Seq+1 when the log holds none. 0 means that the log is empty
// and has no base.
func (l *Log) First() uint64 { panic("unwritten") }

// Append makes ops the next entry and returns its position once it is on
// stable storage. It may be called from many goroutines, whose entries then
// share an fsync. When ctx ends first the entry may still be kept.
func (l *Log) Append(ctx context.Context, ops []Op) (Pos, error) { panic("unwritten") }

// AppendEntries appends entries that another log made, all or (after an error)
// a prefix of them, and returns once they are on stable storage. The first must
// link to Head: if it does not the error is a *DivergedError and nothing was
// written.
func (l *Log) AppendEntries(entries []Entry) (Pos, error) { panic("unwritten") }

// Trim removes sealed segments all of whose entries have seq ≤ upTo, and
// returns the new First. Entries after upTo are always kept.
func (l *Log) Trim(upTo uint64) (first uint64, err error) { panic("unwritten") }

// Bytes returns the size of all segments on disk.
func (l *Log) Bytes() int64 { panic("unwritten") }

// Close releases the log. It may be called twice.
func (l *Log) Close() error { panic("unwritten") }

// Reader returns the entries after a position, in order, and waits for more at
// the head. One goroutine may use it at a time. It holds files open: Close it.
type Reader struct{}

// Reader starts reading after pos (the zero Pos: from entry 1). If the log no
// longer holds the next entry the error is a *TrimmedError; if it holds another
// entry at pos.Seq, or ends before it, a *DivergedError.
func (l *Log) Reader(pos Pos) (*Reader, error) { panic("unwritten") }

// Next returns at least one entry, and then as many as are there without
// waiting, up to about maxBytes of frames. It waits while the reader is at the
// head; it returns ctx's error when ctx ends, ErrClosed when the log is closed,
// a *TrimmedError when it was overtaken by Trim or Reset.
func (r *Reader) Next(ctx context.Context, maxBytes int) ([]Entry, error) { panic("unwritten") }

// Close releases the reader. It may be called twice.
func (r *Reader) Close() error { panic("unwritten") }

// Report is what Verify found.
type Report struct {
	Dataset  DatasetID
	Base     Pos // the position before the first entry held
	Head     Pos
	Entries  uint64
	Segments int
	Bytes    int64
	TornTail int64 // bytes after the last whole entry, which Open would truncate
}

// Verify reads every entry of the log in dir, which no process has open for
// writing, and changes nothing. Damage is a *CorruptError, beside the report of
// what was sound before it.
func Verify(dir string) (Report, error) { panic("unwritten") }
