package peer

import (
	"context"
	"errors"
	"fmt"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/compare"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// ownCopy is what this node compares with what the others say.
type ownCopy struct{ store *lmdbstore.Store }

func (c ownCopy) Newest() compare.Point {
	s := c.store.State()
	return compare.Point{Pos: s.Pos, Digest: s.Digest}
}

func (c ownCopy) At(seq uint64) (compare.Point, bool) {
	pos, digest, ok := c.store.DigestAt(seq)
	return compare.Point{Pos: pos, Digest: digest}, ok
}

// said is what this node says of its copy: no news while that is not to be believed. What
// it held after an entry it says even then: should the writer's copy be the one that
// is damaged, all others find themselves contradicted at once, and have to find that out.
type said struct {
	ownCopy
	infirmary *infirmary
}

func (s said) Newest() p2p.Applied {
	if s.infirmary.reason() != nil {
		return p2p.Applied{}
	}
	return p2p.Applied(s.ownCopy.Newest())
}

func (s said) At(seq uint64) (p2p.Applied, bool) {
	point, ok := s.ownCopy.At(seq)
	return p2p.Applied(point), ok
}

// otherCopies are those of the fleet.
type otherCopies struct {
	*fleet
	client  *p2p.Client
	proof   *proof
	dataset func() txlog.DatasetID
}

var _ compare.Fleet = (*otherCopies)(nil)

// Said implements compare.Fleet. A member that failed differs as it did: it is only
// when it leaves that what it said is of no interest any more.
func (o *otherCopies) Said() (said []compare.Statement) {
	dataset, writer := o.dataset(), ""
	for _, m := range o.gossip.Members()[1:] {
		if m.Liveness == gossip.Left || m.Dataset != dataset || dataset.IsZero() {
			continue
		}
		if isWriter(m) {
			writer = m.Name
		}
		s := compare.Statement{Who: m.Name, Manager: m.Role == gossip.Manager, Writer: isWriter(m), Alive: m.Liveness == gossip.Alive}
		if m.AppliedDigest != [32]byte{} {
			s.Point = compare.Point{Pos: m.Applied, Digest: m.AppliedDigest}
		}
		said = append(said, s)
	}
	if o.proof == nil || o.proof.writer != nil {
		return said
	}
	if h := o.proof.guard.Furthest(); h.Dataset == dataset {
		said = append(said, compare.Statement{
			Who: writer, Manager: true, Writer: true, Signed: true, Point: compare.Point{Pos: h.Applied, Digest: h.Digest},
		})
	}
	return said
}

// Ask implements compare.Fleet.
func (o *otherCopies) Ask(ctx context.Context, who string, seq uint64) (compare.Point, error) {
	for _, m := range o.others() {
		if m.Name != who || m.PeerAddr == "" {
			continue
		}
		a, err := o.client.Digest(ctx, p2p.Target{Name: m.Name, Addr: m.PeerAddr}, o.dataset(), seq)
		if errors.Is(err, p2p.ErrNoDigest) {
			err = fmt.Errorf("%w: %w", compare.ErrUnknown, err)
		}
		return compare.Point(a), err
	}
	return compare.Point{}, fmt.Errorf("node %s is not there", who)
}

// newComparer makes what compares this node's copy with the others'.
func (w *wiring) newComparer() (*compare.Comparer, error) {
	in := w.disk.infirmary
	return compare.New(compare.Options{
		Copy:    ownCopy{w.disk.store},
		Fleet:   &otherCopies{fleet: w.fleet, client: w.client, proof: w.disk.proof, dataset: w.disk.log.Dataset},
		Manager: w.o.Role == gossip.Manager, Writer: w.disk.node.writer(), Signed: w.disk.proof != nil,
		Out: func() bool { return in.reason() != nil },
		Convict: func(e *compare.DivergedError) {
			generation := w.disk.store.Generation()
			if ours, ok := (ownCopy{w.disk.store}).At(e.Ours.Pos.Seq); ok && ours == e.Ours { // or it was replaced
				in.report(finding{Part: partDigest, Err: e, Generation: generation})
			}
		},
		Logger: w.logger("compare"), Registerer: w.reg,
	})
}
