package heads

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// How often the writer signs.
const (
	SignGap      = 20 * time.Millisecond // the least time between two signatures
	SignInterval = time.Second           // the longest, also when nothing happens
)

// gapBatch is how much of the log is read at a time to sign what the book lacks.
const gapBatch = 1 << 20

// WriterOptions configure a Writer. All but the last three are required.
type WriterOptions struct {
	Log  *txlog.Log
	Key  *signing.Signer
	Book *Book
	// Applied returns up to where this node applied its log, and the digest of the
	// pairs there. Default: the heads say nothing of it.
	Applied    func() (pos txlog.Pos, digest [32]byte)
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // default: none
}

// Writer signs the heads of the log that it alone appends to.
type Writer struct {
	o       WriterOptions
	signed  prometheus.Counter
	key     string // by which the book's heads are
	last    Head   // signed last
	at      time.Time
	bytes   int64         // of the log, then
	missing *txlog.Reader // of what the book lacks, nil when there is nothing
	since   int64         // bytes of that since the last head that was kept
	failing bool
}

// NewWriter refuses a log that ends before an entry that was signed: entries
// were lost, and writing on would fork the dataset.
func NewWriter(o WriterOptions) (*Writer, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Applied == nil {
		o.Applied = func() (txlog.Pos, [32]byte) { return txlog.Pos{}, [32]byte{} }
	}
	w := &Writer{o: o, signed: newSignedCounter(o.Registerer)}
	newest := o.Book.Newest()
	if newest.Dataset != o.Log.Dataset() {
		return w, nil
	}
	if err := holds(o.Log, newest.Pos); err != nil {
		return nil, fmt.Errorf("this node signed that entry %d is %s, and its log says: %w: acknowledged entries are missing; restore the log",
			newest.Pos.Seq, newest.Pos.Hash, err)
	}
	w.last = newest.Head
	return w, nil
}

// holds returns nil if the log holds pos, or held it.
func holds(log *txlog.Log, pos txlog.Pos) error {
	r, err := log.Reader(pos)
	if err == nil {
		return r.Close()
	}
	if _, trimmed := errors.AsType[*txlog.TrimmedError](err); trimmed {
		return nil
	}
	return err
}

// Run signs until ctx ends: at once when entries became durable, but every
// SignGap at most, and otherwise every SignInterval. Meanwhile it signs what the
// book lacks, which is everything when the key is another one.
func (w *Writer) Run(ctx context.Context) {
	defer w.filled()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		changed := w.o.Log.Changed()
		w.sign()
		if w.missing != nil {
			w.fill()
			continue
		}
		timer.Reset(SignInterval - time.Since(w.at))
		select {
		case <-changed:
			if rest := SignGap - time.Since(w.at); rest > 0 {
				timer.Reset(rest)
				select {
				case <-timer.C:
				case <-ctx.Done():
				}
			}
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// sign signs the log's head if it is time to.
func (w *Writer) sign() {
	if key := w.o.Key.String(); key != w.key {
		w.key = key
		w.fit()
	}
	applied, digest := w.o.Applied() // before the head, which is at or behind it
	pos, since := w.o.Log.Head(), time.Since(w.at)
	if pos.Seq == 0 || since < SignGap || pos == w.last.Pos && since < SignInterval {
		return
	}
	// Later than the last one, whatever the clock does: the later one counts.
	now := time.Now().UTC()
	if !now.After(w.last.Time) {
		now = w.last.Time.Add(1)
	}
	w.at = time.Now()
	h, err := w.note(Head{Dataset: w.o.Log.Dataset(), Pos: pos, Time: now, Applied: applied, Digest: digest})
	if err != nil {
		return
	}
	w.last = h.Head
	bytes := w.o.Log.Bytes()
	grown := max(0, bytes-w.bytes) // Trim makes it shorter
	if w.missing != nil {
		grown = 0
	}
	w.bytes = bytes
	w.o.Book.Add(h, grown)
}

// note signs h.
func (w *Writer) note(h Head) (Signed, error) {
	note, err := w.o.Key.Sign(h.Encode())
	if err == nil && len(note) > MaxNote {
		err = fmt.Errorf("it would be %d bytes long", len(note))
	}
	if err != nil && !w.failing {
		w.o.Logger.Error("the log's head can not be signed: nobody will apply what is written", "err", err)
	}
	if w.failing = err != nil; w.failing {
		return Signed{}, err
	}
	w.signed.Inc()
	return Signed{h, note}, nil
}

// fit begins to sign what the book lacks behind what it holds by this key.
func (w *Writer) fit() {
	w.filled()
	from := w.o.Log.Base()
	first, _ := w.o.Book.After(0)
	last, ok := w.o.Book.Before(math.MaxUint64)
	if ok && w.signedBy(first) && w.signedBy(last) && last.Dataset == w.o.Log.Dataset() && last.Pos.Seq > from.Seq && holds(w.o.Log, last.Pos) == nil {
		from = last.Pos
	} else {
		w.o.Book.Clear()
		w.at = time.Time{} // sign now
	}
	r, err := w.o.Log.Reader(from)
	if err != nil {
		w.o.Logger.Warn("older heads of the log can not be signed; peers that are far behind may need a snapshot", "after", from.Seq, "err", err)
		return
	}
	w.missing, w.since = r, 0
}

// signedBy reports whether a head is signed by the present key: its signatures
// are deterministic.
func (w *Writer) signedBy(h Signed) bool {
	note, err := w.o.Key.Sign(h.Encode())
	return err == nil && bytes.Equal(note, h.Note)
}

// fill signs some of what the book lacks.
func (w *Writer) fill() {
	entries, err := w.missing.Next(atOnce, gapBatch)
	for i := range entries {
		w.since += int64(len(entries[i].Frame()))
		if w.since < Spacing {
			continue
		}
		w.since = 0
		h, err := w.note(Head{Dataset: w.o.Log.Dataset(), Pos: entries[i].Pos(), Time: time.Now().UTC()})
		if err != nil {
			break
		}
		w.o.Book.Keep(h)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		w.o.Logger.Warn("older heads of the log can not be signed; peers that are far behind may need a snapshot", "err", err)
	}
	if err != nil {
		w.filled()
		w.bytes = w.o.Log.Bytes()
	}
}

// filled ends the reading of what the book lacked.
func (w *Writer) filled() {
	if w.missing != nil {
		w.missing.Close()
		w.missing = nil
	}
}

// atOnce makes (*txlog.Reader).Next return what is there, or context.Canceled.
var atOnce = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()
