package peer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// proof is what a node has to prove its log to others, and has others prove theirs.
// It is nil where there are no trusted keys.
type proof struct {
	book   *heads.Book
	guard  *heads.Guard
	writer *heads.Writer // nil: this node signs no heads
}

// openProof opens the signed heads of a log that is open.
func openProof(o *Options, sigs *signatures, s *storage, reg prometheus.Registerer, stop *cleanup) (*proof, error) {
	if sigs.trusted == nil {
		return nil, nil
	}
	logger := o.Logger.With("part", "heads")
	p := &proof{}
	var err error
	if p.book, err = heads.OpenBook(filepath.Join(s.dir, headsDir), heads.BookOptions{Logger: logger}); err != nil {
		return nil, err
	}
	stop.addClose("close signed heads", p.book.Close)
	p.guard, err = heads.NewGuard(heads.GuardOptions{
		Trusted: sigs.trusted, Book: p.book, Log: s.log, Evidence: filepath.Join(s.dir, evidenceDir), Writer: s.node.writer(),
		Logger: logger, Registerer: reg,
	})
	if err != nil {
		return nil, err
	}
	if !s.node.writer() || sigs.signer == nil {
		return p, nil
	}
	p.writer, err = heads.NewWriter(heads.WriterOptions{
		Log: s.log, Key: sigs.signer, Book: p.book, Logger: logger, Registerer: reg,
		Applied: func() (txlog.Pos, [32]byte) {
			newest := said{ownCopy{s.store}, s.infirmary}.Newest()
			return newest.Pos, newest.Digest
		},
	})
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", s.dir, err)
	}
	return p, nil
}

// run signs heads until ctx ends, or until they must not be signed any more.
func (p *proof) run(ctx context.Context) {
	if p == nil || p.writer == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signing := make(chan struct{})
	go func() {
		defer close(signing)
		p.writer.Run(ctx)
	}()
	select {
	case <-p.guard.Halted():
		cancel()
	case <-ctx.Done():
	}
	<-signing
}

// halt returns why nothing may be written or applied any more.
func (p *proof) halt() error {
	if p == nil {
		return nil
	}
	return p.guard.Halt()
}

// trim drops the heads of entries that the log does not hold any more.
func (p *proof) trim(first uint64) error {
	if p == nil {
		return nil
	}
	return p.book.Trim(first)
}

// serve adds what others can ask for.
func (p *proof) serve(o *p2p.ServerOptions) {
	if p != nil {
		o.Heads, o.Witness = sentHeads{p}, p.guard.Witness
	}
}

// ask adds what is asked of others.
func (p *proof) ask(o *p2p.ClientOptions) {
	if p != nil {
		o.SignedHeads = true
		o.ShowHead = func() []byte { return p.guard.Furthest().Note }
	}
}

// follow makes a replica believe what is signed.
func (p *proof) follow(c *replica.Config) {
	if p != nil {
		c.Heads = knownHeads{p.guard}
	}
}

// stream opens an upstream's log, of which only what is signed is handed on.
func (p *proof) stream(ctx context.Context, u replica.Upstream, after txlog.Pos, open func(context.Context, txlog.Pos) (*p2p.Stream, error)) (replica.Stream, error) {
	s, err := p.guard.Follow(ctx, u.Name, u.Writer, after, func(ctx context.Context, after txlog.Pos) (heads.Source, error) {
		s, err := open(ctx, after)
		if errors.Is(err, p2p.ErrUnsigned) {
			return nil, &heads.FaultError{Reason: heads.Unsigned, Err: err}
		}
		if err != nil {
			return nil, err
		}
		return receivedLog{s}, nil
	})
	if err != nil {
		return nil, err
	}
	return provedStream{s}, nil
}

// These make the real things fit where the method sets differ.

type sentHeads struct{ *proof }

func sent(h heads.Signed) p2p.SignedHead { return p2p.SignedHead{Pos: h.Pos, Note: h.Note} }

func (h sentHeads) After(seq uint64) (p2p.SignedHead, bool) {
	s, ok := h.book.After(seq)
	return sent(s), ok
}

func (h sentHeads) Newest() (p2p.SignedHead, bool) {
	s := h.book.Newest()
	return sent(s), s.Note != nil
}

func (h sentHeads) Furthest() (p2p.SignedHead, bool) {
	s := h.guard.Furthest()
	return sent(s), s.Note != nil
}

func (h sentHeads) Changed() <-chan struct{} { return h.book.Changed() }

type knownHeads struct{ *heads.Guard }

func (h knownHeads) Furthest() (txlog.Pos, time.Time) {
	s := h.Guard.Furthest()
	return s.Pos, s.Time
}

type receivedLog struct{ *p2p.Stream }

func (r receivedLog) Next(maxBytes int) ([]txlog.Entry, [][]byte, error) {
	p, err := r.Stream.Next(maxBytes)
	if errors.Is(err, p2p.ErrProtocol) {
		err = &heads.FaultError{Reason: heads.Garbled, Err: err}
	}
	return p.Entries, p.Signed, err
}

type provedStream struct{ *heads.Stream }

func (s provedStream) Next(maxBytes int) ([]txlog.Entry, txlog.Pos, time.Time, error) {
	entries, h, err := s.Stream.Next(maxBytes)
	return entries, h.Pos, h.Time, err
}
