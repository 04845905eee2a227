package p2p

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/txlog"
)

// SignedHead is a head that was signed, opaque to this package: Note says that
// the log's entry Pos.Seq has the hash Pos.Hash.
type SignedHead struct {
	Pos  txlog.Pos
	Note []byte // at most MaxSignedHead bytes
}

// Heads are the signed heads of a server's log. Implementations are safe for
// concurrent use.
type Heads interface {
	// After returns the first head that is kept of an entry after seq, or the
	// newest one if that is.
	After(seq uint64) (SignedHead, bool)
	// Newest returns the head that was signed last, of the entries that are here.
	Newest() (SignedHead, bool)
	// Furthest returns one that may be of entries that are not here yet.
	Furthest() (SignedHead, bool)
	// Changed returns a channel that is closed when Newest returns another one.
	Changed() <-chan struct{}
}

// noHeads are none.
type noHeads struct{}

func (noHeads) After(uint64) (SignedHead, bool) { return SignedHead{}, false }
func (noHeads) Newest() (SignedHead, bool)      { return SignedHead{}, false }
func (noHeads) Furthest() (SignedHead, bool)    { return SignedHead{}, false }
func (noHeads) Changed() <-chan struct{}        { return nil }

// atOnce makes (*txlog.Reader).Next return what is there, or context.Canceled.
var atOnce = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// sender sends one log stream.
type sender struct {
	s       *Server
	out     *patientWriter
	z       *zstd.Encoder
	heads   Heads
	digests Digests // nil: the peer asked for none

	last     txlog.Pos // the peer has the log up to here
	until    uint64    // the last entry that it wants; 0: all there will be
	signed   []byte    // the signed head that was sent last
	promised time.Time // when it was one of an entry that was not sent yet
	buf      []byte
}

// stream sends what reader, which stands after pos, returns, up to entry until, if
// that is not 0, or until ctx ends or something fails. It flushes when there is
// nothing more to send.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, reader *txlog.Reader, pos txlog.Pos, until uint64, heads Heads, digests Digests) error {
	out := &patientWriter{ctx: ctx, w: w, upload: s.o.Upload, sent: s.metrics.wireBytes}
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	defer z.Close()
	if heads == nil {
		heads = noHeads{}
	}
	return (&sender{s: s, out: out, z: z, heads: heads, digests: digests, last: pos, until: until}).run(ctx, reader)
}

func (x *sender) run(ctx context.Context, reader *txlog.Reader) error {
	beat := time.NewTicker(HeartbeatInterval / 2)
	defer beat.Stop()
	log := x.s.o.Log
	if err := x.head(Head{Pos: log.Head(), Time: log.HeadTime()}); err != nil {
		return err
	}
	flushed := time.Time{}
	for {
		logChanged, headsChanged := log.Changed(), x.heads.Changed()
		if err := x.newest(); err != nil {
			return err
		}
		entries, err := reader.Next(atOnce, sendBatch)
		if err == nil {
			if x.until > 0 && x.until-x.last.Seq < uint64(len(entries)) {
				entries = entries[:x.until-x.last.Seq]
			}
			if err := x.entries(entries); err != nil {
				return err
			}
			if x.last.Seq == x.until {
				return x.flush()
			}
			last := &entries[len(entries)-1]
			level := last.Seq >= log.Head().Seq // the peer was sent all there is: tell it so
			if level {
				if err := x.head(Head{Pos: last.Pos(), Time: last.Time}); err != nil {
					return err
				}
			}
			if level || time.Since(flushed) >= flushAfter {
				if err := x.flush(); err != nil {
					return err
				}
				flushed = time.Now()
			}
			continue
		}
		if !errors.Is(err, context.Canceled) {
			return err
		}
		if err := x.flush(); err != nil {
			return err
		}
		select {
		case <-logChanged:
		case <-headsChanged:
		case <-beat.C:
			if err := x.head(Head{Pos: log.Head(), Time: log.HeadTime()}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// entries sends entries, each signed head behind the entry that it is of.
func (x *sender) entries(entries []txlog.Entry) error {
	size := 0
	next, ok := x.heads.After(x.last.Seq)
	for i := range entries {
		e := &entries[i]
		size += len(e.Frame())
		if _, err := x.z.Write(entryPrefix); err != nil {
			return err
		}
		if _, err := x.z.Write(e.Frame()); err != nil {
			return err
		}
		x.last = e.Pos()
		if !ok || e.Seq < next.Pos.Seq {
			continue
		}
		if e.Pos() == next.Pos {
			if err := x.sign(next.Note); err != nil {
				return err
			}
		}
		next, ok = x.heads.After(e.Seq)
	}
	x.s.metrics.entries.Add(float64(len(entries)))
	x.s.metrics.bytes.Add(float64(size))
	return nil
}

// newest sends the newest signed head if it says something about what was sent.
// At first, and then now and then, it sends the furthest: it tells the peer how
// far it has to go.
func (x *sender) newest() error {
	h, ok := x.heads.Newest()
	if ok && h.Pos.Seq <= x.last.Seq && !bytes.Equal(h.Note, x.signed) {
		if err := x.sign(h.Note); err != nil {
			return err
		}
	}
	if time.Since(x.promised) < HeartbeatInterval {
		return nil
	}
	x.promised = time.Now()
	if h, ok := x.heads.Furthest(); ok && h.Pos.Seq > x.last.Seq {
		return x.sign(h.Note)
	}
	return nil
}

func (x *sender) sign(note []byte) error {
	x.signed = note
	x.buf = appendSigned(x.buf[:0], note)
	_, err := x.z.Write(x.buf)
	return err
}

// head sends where the log ends, and what the store made of it so far.
func (x *sender) head(h Head) error {
	x.buf = appendHead(x.buf[:0], h)
	if x.digests != nil {
		if a := x.digests.Newest(); !a.Pos.IsZero() {
			x.buf = appendDigest(x.buf, a)
		}
	}
	_, err := x.z.Write(x.buf)
	return err
}

func (x *sender) flush() error {
	if err := x.z.Flush(); err != nil {
		return err
	}
	return x.out.flush()
}

var entryPrefix = []byte{entryMessage}

// patientWriter writes to a client that may be slow but not stuck.
type patientWriter struct {
	ctx    context.Context // of the request
	w      http.ResponseWriter
	upload *Budget
	sent   prometheus.Counter
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if err := p.upload.Wait(p.ctx, Urgent, len(b)); err != nil {
		return 0, err
	}
	if err := beImpatient(p.w); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	p.sent.Add(float64(n))
	return n, err
}

func (p *patientWriter) flush() error { return http.NewResponseController(p.w).Flush() }
