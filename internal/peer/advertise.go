package peer

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
)

// advertiseEvery is how often figures that change without an event (bytes,
// progress, positions) are said again.
const advertiseEvery = 500 * time.Millisecond

// advertiser keeps what gossip says of this node true.
type advertiser struct {
	storage *storage
	swarm   *p2p.Swarm
	shelf   *shelf
	gossip  *gossip.Gossip
	status  func() replica.Status
	fail    func(error) // the node can not go on
	logger  *slog.Logger
	changed *signal // something happened that the others should hear of soon
}

func (a *advertiser) run(ctx context.Context) {
	t := time.NewTicker(advertiseEvery)
	defer t.Stop()
	var figures pacer
	for {
		bound := a.storage.bind()
		if noRoom(bound) {
			bound = nil // it is tried again, and the replica says that the disk is full
		}
		if err := errors.Join(bound, a.gossip.Conflict()); err != nil {
			a.fail(err)
			return
		}
		// Gossip tells the others only if something changed.
		nodes := len(a.gossip.Members())
		err := a.gossip.Update(func(f *gossip.Facts) {
			before := *f
			a.fill(f)
			figures.pace(f, before, nodes, time.Now())
		})
		if err != nil {
			a.logger.Warn("updating gossip failed", "err", err)
		}
		select {
		case <-a.changed.c:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// fill sets the facts that change while a node runs.
func (a *advertiser) fill(f *gossip.Facts) {
	st, store, log := a.status(), a.storage.store.State(), a.storage.log
	f.State = string(st.State)
	f.Writer = a.storage.node.writer()
	f.Dataset = log.Dataset()
	f.Applied, f.AppliedTime, f.AppliedDigest = store.Pos, store.Time, store.Digest
	if a.storage.infirmary.reason() != nil {
		f.AppliedDigest = [32]byte{} // of what is not to be believed nothing is said
	}
	f.LogFirst = log.First()
	f.Head, f.HeadTime = log.Head(), log.HeadTime()
	f.Snapshots = a.shelf.announcements()
	received := a.swarm.Totals()
	f.FromManagers = payload(received[p2p.FromManagers])
	f.FromOwnColo = payload(received[p2p.FromOwnColo])
	f.FromOtherColos = payload(received[p2p.FromOtherColos])
	f.Fetching, f.FetchDone, f.FetchTotal, f.FetchRate = chunker.InfoHash{}, 0, 0, 0
	if p, ok := a.swarm.Progress(); ok && p.Running {
		f.Fetching, f.FetchDone, f.FetchTotal, f.FetchRate = p.InfoHash, p.Done, p.Total, p.Rate
	}
	f.Progress = 0
	switch {
	case st.Total > 0:
		f.Progress = float64(st.Done) / float64(st.Total)
	case st.State == replica.Serving, st.State == replica.CatchingUp:
		f.Progress = 1
	}
}

// How often at most the others hear how far a fetch is: every figuresEvery, and in fleets of
// more than figuresNodes in proportion more rarely, up to figuresMost, since every node
// verifies, passes on and looks at what every other says. Only people want to know.
const (
	figuresEvery = time.Second
	figuresMost  = 15 * time.Second
	figuresNodes = 5
)

// A pacer tells the figures of a fetch, which change all the time, no more often
// than that, but when a fetch begins or ends and when the state changes.
type pacer struct{ told time.Time }

// pace takes the figures in f back to what was told before if it is too early in a
// fleet of so many.
func (p *pacer) pace(f *gossip.Facts, before gossip.Facts, nodes int, now time.Time) {
	every := min(figuresEvery*time.Duration(max(nodes, figuresNodes))/figuresNodes, figuresMost)
	if f.Fetching != before.Fetching || f.State != before.State || now.Sub(p.told) >= every {
		p.told = now
		return
	}
	f.Progress, f.FetchDone, f.FetchTotal, f.FetchRate = before.Progress, before.FetchDone, before.FetchTotal, before.FetchRate
	f.FromManagers, f.FromOwnColo, f.FromOtherColos = before.FromManagers, before.FromOwnColo, before.FromOtherColos
}

func payload(r p2p.Received) gossip.Payload {
	return gossip.Payload{Bytes: r.Bytes, Pieces: uint32(min(r.Pieces, math.MaxUint32))}
}
