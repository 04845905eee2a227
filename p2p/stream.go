package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/qs-peer/qs-peer/txlog"
)

// Errors that callers branch on.
var (
	// ErrOtherDataset means that the peer holds another dataset.
	ErrOtherDataset = errors.New("peer holds another dataset")
	// ErrNotHeld means that the peer does not have that snapshot.
	ErrNotHeld = errors.New("peer does not hold that snapshot")
	// ErrUnsigned means that the peer sends no signed heads, which were asked for.
	ErrUnsigned = errors.New("peer sends no signed heads")
	// ErrProtocol is wrapped by errors about what a peer sent.
	ErrProtocol = errors.New("peer protocol error")
)

// HeartbeatInterval is the longest silence of a healthy log stream. A client
// gives a stream up after three of them.
const HeartbeatInterval = time.Second

// Head is where a peer's log ends.
type Head struct {
	Pos  txlog.Pos
	Time time.Time // the writer's clock in that entry; zero if unknown
}

// Part is what arrived of a log stream since the last one.
type Part struct {
	Entries []txlog.Entry // verified one by one, and linked to those before
	// Head is what the sender says of where its log ends, or the last entry.
	Head Head
	// Signed are signed heads, unverified, at most MaxSignedHead bytes each. The
	// entries they are about came before or with them, or will come.
	Signed [][]byte
	// Applied is what the sender said last of the pairs in its store, if it did
	// since the last Part; zero if not.
	Applied Applied
}

const (
	// silentAfter is how long a stream may bring no whole message …
	silentAfter = 3 * HeartbeatInterval
	// … but for an entry of n bytes, which may take n/slowest seconds longer.
	slowest = 128 << 10

	// receiveBatch is about how many bytes of entries are handed on at once,
	// and readAhead how many such batches wait for Next; a batch of one large
	// entry waits alone.
	receiveBatch = 256 << 10
	// rangeBatch is about how many bytes of a range are handed on at once.
	rangeBatch = 4 << 20
	readAhead  = 4

	// idleHeads is how many heads in a row, signed or not, without an entry
	// between them, a peer may send within silentAfter. A healthy one sends three
	// a second.
	idleHeads = 1000
)

// errStreamClosed is what Next returns after Close.
var errStreamClosed = fmt.Errorf("closed by its reader: %w", net.ErrClosed)

// Stream is a running log stream. One goroutine may use it.
//
// A goroutine of its own unpacks and verifies ahead of Next, up to readAhead
// batches.
type Stream struct {
	dataset txlog.DatasetID
	signed  bool // signed heads were asked for
	digests bool // digests were
	ctx     context.Context
	cancel  context.CancelCauseFunc
	body    io.ReadCloser
	metrics clientMetrics
	batches chan batch          // closed at the end, after err was set
	room    *semaphore.Weighted // bytes; a batch holds its own while it is in batches
	done    chan struct{}       // closed when the goroutine is gone
	err     error               // why it ended
	rest    batch               // taken from batches but not returned yet
	head    Head                // as last returned
}

// batch is what arrived together. Its head is what the sender said last.
type batch struct {
	Part
	held int64 // of Stream.room
}

func newStream(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, addr string, dataset txlog.DatasetID, after txlog.Pos, query url.Values, c *Client) (*Stream, error) {
	s := &Stream{
		dataset: dataset, signed: wants(query, headsQuery, headsSigned), digests: wants(query, digestsQuery, digestsSent),
		ctx: ctx, cancel: cancel, body: body, metrics: c.metrics,
		batches: make(chan batch, readAhead), done: make(chan struct{}),
		room: semaphore.NewWeighted(readAhead * receiveBatch),
	}
	z, err := zstd.NewReader(&countingReader{&budgetReader{ctx, body, c.budget}, c.metrics.wireBytes},
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		cancel(err)
		body.Close()
		return nil, err
	}
	s.metrics.active.Inc()
	go func() {
		defer close(s.done)
		defer s.metrics.active.Dec()
		err := because(ctx, s.receive(z, after))
		if !errors.Is(err, context.Canceled) && !errors.Is(err, errStreamClosed) {
			s.metrics.broken.Inc()
			c.log.Debug("log stream broke", "peer", addr, "error", err)
		}
		s.err = fmt.Errorf("log stream of %s: %w", addr, err)
		cancel(s.err)
		body.Close()
		z.Close()
		close(s.batches)
	}()
	return s, nil
}

// receive reads, verifies and hands on until something goes wrong, which it
// returns.
func (s *Stream) receive(r io.Reader, last txlog.Pos) error {
	silence := time.AfterFunc(silentAfter, func() {
		s.cancel(fmt.Errorf("%w: silent, or too slow with a message", ErrProtocol))
	})
	defer silence.Stop()
	in := messageReader{r: bufio.NewReaderSize(r, 64<<10)}
	in.expect = func(size int64) {
		if size > int64(in.r.Buffered()) {
			silence.Reset(silentAfter + time.Duration(size)*time.Second/slowest)
		}
	}
	var b batch
	size, heads := 0, 0
	known := false // the sender's head was told
	var since time.Time
	for {
		m, err := in.next()
		if err == io.EOF {
			return fmt.Errorf("the peer ended the stream: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
		switch m.kind {
		case entryMessage:
			if err := s.check(&m.entry, last); err != nil {
				return err
			}
			last = m.entry.Pos()
			b.Entries = append(b.Entries, m.entry)
			size += len(m.entry.Frame())
			heads = 0
			if b.Head.Pos.Seq < last.Seq {
				b.Head = Head{Pos: last, Time: m.entry.Time}
			}
		case headMessage:
			if m.head.Pos.Seq < last.Seq || m.head.Pos.Seq == last.Seq && m.head.Pos.Hash != last.Hash {
				return fmt.Errorf("%w: the peer says that its log ends at %v, and sent %v", ErrProtocol, m.head.Pos, last)
			}
			b.Head, known = m.head, true
		case signedMessage:
			if !s.signed {
				return fmt.Errorf("%w: a signed head that nobody asked for", ErrProtocol)
			}
			b.Signed = append(b.Signed, m.note)
			size += len(m.note)
		case digestMessage:
			if !s.digests {
				return fmt.Errorf("%w: a digest that nobody asked for", ErrProtocol)
			}
			b.Applied = m.applied
		}
		if m.kind != entryMessage {
			if heads == 0 || time.Since(since) >= silentAfter {
				heads, since = 0, time.Now()
			}
			if heads++; heads > idleHeads {
				return fmt.Errorf("%w: nothing but heads", ErrProtocol)
			}
		}
		if !known {
			return fmt.Errorf("%w: the stream does not begin with the sender's head", ErrProtocol)
		}
		if in.r.Buffered() > 0 && size < receiveBatch {
			continue
		}
		silence.Stop() // a slow receiver is not the sender's fault
		s.metrics.entries.Add(float64(len(b.Entries)))
		s.metrics.bytes.Add(float64(size))
		b.held = min(int64(size), readAhead*receiveBatch)
		if err := s.room.Acquire(s.ctx, b.held); err != nil {
			return err
		}
		select {
		case s.batches <- b:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		silence.Reset(silentAfter)
		b, size = batch{Part: Part{Head: b.Head, Entries: make([]txlog.Entry, 0, len(b.Entries))}}, 0
	}
}

// check proves that e follows last. Its own hash was verified by Decode.
func (s *Stream) check(e *txlog.Entry, last txlog.Pos) error {
	if e.Seq != last.Seq+1 || e.Prev != last.Hash {
		return fmt.Errorf("%w: entry %d, which follows %s, was sent after %v", ErrProtocol, e.Seq, e.Prev, last)
	}
	if e.Seq == 1 && (e.Ops[0].Kind != txlog.Init || string(e.Ops[0].Value) != string(s.dataset[:])) {
		return fmt.Errorf("%w: entry 1 does not begin dataset %s", ErrProtocol, s.dataset)
	}
	return nil
}

// Dataset returns the sender's dataset.
func (s *Stream) Dataset() txlog.DatasetID { return s.dataset }

// Next returns what arrived, about maxBytes of entries at most. It waits for at
// least one message; there may be no entries when that was a heartbeat. Signed
// heads come with or after the entries they were sent after. A silent, garbled
// or unlinked stream is an error, and the stream is over.
func (s *Stream) Next(maxBytes int) (Part, error) {
	if len(s.rest.Entries) == 0 {
		b, ok := <-s.batches
		if !ok {
			return Part{Head: s.head}, s.err
		}
		s.take(b)
	}
	var p Part
	size := 0
	for {
		n := 0
		for n < len(s.rest.Entries) && (len(p.Entries)+n == 0 || size+len(s.rest.Entries[n].Frame()) <= maxBytes) {
			size += len(s.rest.Entries[n].Frame())
			n++
		}
		s.head = s.rest.Head
		p.Head = s.head
		if p.Entries == nil {
			p.Entries = s.rest.Entries[:n:n]
		} else {
			p.Entries = append(p.Entries, s.rest.Entries[:n]...)
		}
		if s.rest.Entries = s.rest.Entries[n:]; len(s.rest.Entries) > 0 {
			return p, nil
		}
		p.Signed = append(p.Signed, s.rest.Signed...)
		if !s.rest.Applied.Pos.IsZero() {
			p.Applied = s.rest.Applied
		}
		select {
		case b, ok := <-s.batches:
			if !ok {
				return p, nil // the error is for the next call
			}
			s.take(b)
		default:
			return p, nil
		}
	}
}

// take makes b what is returned next.
func (s *Stream) take(b batch) {
	s.room.Release(b.held)
	s.rest = b
}

// Close ends the stream. It may be called twice, and while Next waits.
func (s *Stream) Close() error {
	s.cancel(errStreamClosed)
	err := s.body.Close()
	for range s.batches { // nobody wants them; Next may take some
	}
	<-s.done
	return err
}

// countingReader counts what is read.
type countingReader struct {
	r io.Reader
	n prometheus.Counter
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(float64(n))
	return n, err
}

// budgetReader waits for a budget after the fact, as for what is urgent: the
// sender is slowed down by TCP.
type budgetReader struct {
	ctx    context.Context
	r      io.Reader
	budget *Budget
}

func (b *budgetReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p[:min(len(p), b.budget.chunk())])
	if werr := b.budget.Wait(b.ctx, Urgent, n); err == nil {
		err = werr
	}
	return n, err
}
