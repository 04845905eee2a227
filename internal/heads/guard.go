package heads

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// maxPledges is how many heads of entries to come are remembered.
const maxPledges = 64

// GuardOptions configure a Guard. All but the last three
// are required.
type GuardOptions struct {
	Trusted    *signing.Trusted
	Book       *Book
	Log        *txlog.Log            // the node's own
	Evidence   string                // the directory for it
	Writer     bool                  // this node appends to its log itself
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // default: none
}

// Guard lets a node believe what the writer signed of its log, and nothing else.
// Its methods may be called concurrently.
type Guard struct {
	o       GuardOptions
	metrics guardMetrics

	mu      sync.Mutex // guards what follows
	newest  Signed     // verified, of an entry that this node may not have yet
	heard   time.Time  // when it was, or the start
	pledges []pledge
	streams uint64 // how many there were
	halt    error
	halted  chan struct{} // closed when halt is set
}

// pledge is a verified head of an entry that this node does not have: when it
// gets there, it has to be that one.
type pledge struct {
	Signed
	by uint64 // the stream that brought it
}

// NewGuard finds out whether there is evidence of a fork from before.
func NewGuard(o GuardOptions) (*Guard, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	forks, err := Forks(o.Evidence)
	if err != nil {
		return nil, fmt.Errorf("look for evidence of a fork: %w", err)
	}
	g := &Guard{o: o, heard: time.Now(), halted: make(chan struct{})}
	if len(forks) > 0 {
		g.stop(forks[0])
	}
	if h := o.Book.Newest(); h.Note != nil {
		if h, err := verify(o.Trusted, h.Note, txlog.DatasetID{}); err == nil {
			g.newest = h
			if h.Pos.Seq > o.Log.Head().Seq {
				g.pledge(h, 0) // a power cut took the entries
			}
		}
	}
	g.metrics = newGuardMetrics(o.Registerer, g)
	return g, nil
}

// Furthest returns the furthest head that was verified, zero if none was: on the
// writer the one that it signed last. A follower may not have the entries yet.
func (g *Guard) Furthest() Signed {
	if g.o.Writer {
		return g.o.Book.Newest()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.newest
}

// age returns how long ago the furthest head was heard of.
func (g *Guard) age() time.Duration {
	if g.o.Writer && g.o.Book.Newest().Note != nil {
		return g.o.Book.age()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.heard)
}

// Halt returns why nothing may be applied or written any more, nil if all is
// well: a *ForkError or, on the writer, a *LostError.
func (g *Guard) Halt() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.halt
}

// Halted returns a channel that is closed when Halt returns an error.
func (g *Guard) Halted() <-chan struct{} { return g.halted }

// stop makes Halt return err, and reports whether it was the first.
func (g *Guard) stop(err error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.halt != nil {
		return false
	}
	g.halt = err
	close(g.halted)
	return true
}

// verify opens a note that an upstream sent.
func (g *Guard) verify(note []byte, dataset txlog.DatasetID) (Signed, *FaultError) {
	h, err := verify(g.o.Trusted, note, dataset)
	if fault, ok := errors.AsType[*FaultError](err); ok {
		g.metrics.refused.WithLabelValues(string(fault.Reason)).Inc()
		return h, fault
	}
	g.metrics.verified.Inc()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.newest.Dataset != h.Dataset || newer(h, g.newest) {
		g.newest, g.heard = h, time.Now()
	}
	return h, nil
}

// pledge remembers a head of an entry that this node does not have.
func (g *Guard) pledge(h Signed, by uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i, _ := slices.BinarySearchFunc(g.pledges, h.Pos.Seq, func(p pledge, seq uint64) int { return cmp.Compare(p.Pos.Seq, seq) })
	for j := i; j < len(g.pledges) && g.pledges[j].Pos.Seq == h.Pos.Seq; j++ {
		if g.pledges[j].Pos == h.Pos {
			g.pledges[j] = pledge{h, by}
			return
		}
	}
	g.pledges = slices.Insert(g.pledges, i, pledge{h, by})
	if len(g.pledges) > maxPledges {
		g.pledges = slices.Delete(g.pledges, 0, 1)
	}
}

// pledged returns the pledges after seq and up to last.
func (g *Guard) pledged(seq, last uint64) []pledge {
	g.mu.Lock()
	defer g.mu.Unlock()
	var some []pledge
	for _, p := range g.pledges {
		if p.Pos.Seq > seq && p.Pos.Seq <= last {
			some = append(some, p)
		}
	}
	return some
}

// redeem forgets the pledges up to seq, and adds h to the book.
func (g *Guard) redeem(h Signed, grown int64) {
	g.mu.Lock()
	g.pledges = slices.DeleteFunc(g.pledges, func(p pledge) bool { return p.Pos.Seq <= h.Pos.Seq })
	g.mu.Unlock()
	g.o.Book.Add(h, grown)
}

// cover returns a signed head of this node's log that vouches for its entry seq.
func (g *Guard) cover(seq uint64) (Signed, bool) {
	if seq == 0 {
		return Signed{}, false
	}
	first, _ := g.o.Book.After(seq - 1)
	for _, h := range []Signed{first, g.o.Book.Newest()} {
		if h.Note == nil || h.Pos.Seq < seq || h.Pos.Seq > g.o.Log.Head().Seq {
			continue
		}
		if _, err := verify(g.o.Trusted, h.Note, g.o.Log.Dataset()); err == nil && holds(g.o.Log, h.Pos) == nil {
			return h, true
		}
	}
	return Signed{}, false
}

// entries returns this node's entries from a seq to another.
func (g *Guard) entries(from, to uint64) ([]txlog.Entry, error) {
	after := g.o.Log.Base()
	if h, ok := g.o.Book.Before(from); ok && h.Pos.Seq > after.Seq && holds(g.o.Log, h.Pos) == nil {
		after = h.Pos
	}
	r, err := g.o.Log.Reader(after)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var entries []txlog.Entry
	for {
		batch, err := r.Next(atOnce, gapBatch)
		if err != nil {
			return nil, err
		}
		for i := range batch {
			if batch[i].Seq >= from {
				entries = append(entries, batch[i])
			}
			if batch[i].Seq == to {
				return entries, nil
			}
		}
	}
}

// check compares a verified head with this node's log.
func (g *Guard) check(h Signed, from string) error {
	err := holds(g.o.Log, h.Pos)
	diverged, ok := errors.AsType[*txlog.DivergedError](err)
	if !ok || diverged.Have.IsZero() || h.Dataset != g.o.Log.Dataset() {
		return nil
	}
	return g.contradicted(from, h.Pos, diverged.Have, h, nil)
}

// contradicted draws the consequence of a verified head that vouches, by the
// entries, for another entry at theirs.Seq than have, which this node's log has.
func (g *Guard) contradicted(from string, theirs txlog.Pos, have txlog.Hash, h Signed, entries []txlog.Entry) error {
	own, ok := g.cover(theirs.Seq)
	if !ok {
		return &ContradictedError{Seq: theirs.Seq, Have: have, Want: theirs.Hash}
	}
	ours, err := g.entries(theirs.Seq, own.Pos.Seq)
	if err != nil {
		return fmt.Errorf("read what a signed head contradicts: %w", err)
	}
	return g.forked(from, theirs.Seq, newSide(have, own, ours), newSide(theirs.Hash, h, entries))
}

// forked keeps the evidence, raises the alarm, and stops everything.
func (g *Guard) forked(from string, seq uint64, ours, theirs Side) error {
	e := &Evidence{
		Format: evidenceFormat, Dataset: g.o.Log.Dataset().String(), Seq: seq, Found: time.Now().UTC(), From: from, Ours: ours, Theirs: theirs,
	}
	if err := e.Check(g.o.Trusted); err != nil {
		return fmt.Errorf("what looked like a fork can not be proved: %w", err)
	}
	g.metrics.forks.Inc()
	path, err := e.save(g.o.Evidence)
	if err != nil {
		g.o.Logger.Error("evidence of a fork could not be kept", "path", path, "err", err)
	}
	fork := &ForkError{Dataset: g.o.Log.Dataset(), Seq: seq, Path: path}
	if !g.stop(fork) {
		return fork // it was logged
	}
	g.o.Logger.Error("the dataset is forked: two histories were signed; nothing is applied until an operator decides",
		"seq", seq, "ours", ours.Hash, "theirs", theirs.Hash, "from", from, "evidence", path)
	return fork
}

// Witness takes in a head that somebody shows who asks for this node's log.
// Others may know of a fork, or of entries that were lost here, before we do.
func (g *Guard) Witness(note []byte, from string) {
	if g.Halt() != nil {
		return
	}
	h, fault := g.verify(note, g.o.Log.Dataset())
	if fault != nil {
		return // why it does not count is the asker's affair
	}
	switch head := g.o.Log.Head(); {
	case h.Pos.Seq <= head.Seq:
		// A fork stops us by itself; that our own tail is wrong we find out from those
		// we follow.
		_ = g.check(h, from)
	case g.o.Writer:
		g.lost(h, head, from)
	default:
		g.pledge(h, 0)
	}
}

// lost stops the writer before it writes other entries in the place of those that
// were signed. The book remembers it.
func (g *Guard) lost(h Signed, head txlog.Pos, from string) {
	err := &LostError{Dataset: h.Dataset, Signed: h.Pos, Head: head, From: from}
	if g.stop(err) {
		g.o.Book.Add(h, 0)
		g.o.Logger.Error("this writer's log lost entries that it signed; it takes no more writes", "err", err)
	}
}

// Source is an upstream's log being streamed; *p2p.Stream is one, but for Next.
type Source interface {
	Dataset() txlog.DatasetID
	// Next returns entries, each verified to follow the one before, and notes that
	// came with them, unverified. It waits for either, or a sign of life.
	Next(maxBytes int) (entries []txlog.Entry, notes [][]byte, err error)
	Close() error
}

// Open opens an upstream's log after a position. Refusals are those of
// (*txlog.Log).Reader.
type Open func(ctx context.Context, after txlog.Pos) (Source, error)

// Follow opens the log of an upstream after this node's head.
//
// That the upstream contradicts us is an error as always only if no signed head
// covers our head. Otherwise it is asked to prove it: the error is a *ForkError
// if it can and our entries are covered, a *ContradictedError if they are not,
// and a *FaultError if it can not. Of the writer also an end before our head is
// looked into.
func (g *Guard) Follow(ctx context.Context, from string, writer bool, after txlog.Pos, open Open) (*Stream, error) {
	if halt := g.Halt(); halt != nil {
		return nil, halt
	}
	src, err := open(ctx, after)
	if err == nil {
		return newStream(g, src, from, after), nil
	}
	diverged, ok := errors.AsType[*txlog.DivergedError](err)
	if !ok || diverged.Have.IsZero() && !writer {
		return nil, err
	}
	if proof := g.inquire(ctx, from, open); proof != nil {
		return nil, proof
	}
	if _, covered := g.cover(after.Seq); covered && !diverged.Have.IsZero() {
		return nil, &FaultError{Unproven, err}
	}
	return nil, err
}
