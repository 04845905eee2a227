package heads

import (
	"context"
	"errors"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// inquireWithin is how long an upstream that contradicts us may take to prove it.
const inquireWithin = 5 * time.Second

// maxIdle is how many signs of life an upstream may give instead of entries.
const maxIdle = 3

// near is how many heads that are kept may lie between a position that both hold
// and where the histories differ: to read them is cheaper than to ask again.
const near = 16

// inquire asks an upstream that refused our position for the history that it
// has instead, from a position that both hold, up to a signed head. nil: nothing
// is proved.
func (g *Guard) inquire(ctx context.Context, from string, open Open) error {
	ctx, cancel := context.WithTimeout(ctx, inquireWithin)
	defer cancel()
	for _, pos := range g.common(ctx, open) {
		src, err := open(ctx, pos)
		if _, trimmed := errors.AsType[*txlog.TrimmedError](err); trimmed {
			continue
		}
		if err != nil {
			return nil
		}
		defer src.Close()
		defer context.AfterFunc(ctx, func() { src.Close() })()
		return g.compare(src, from, pos)
	}
	return nil
}

// common returns positions of our log that the upstream may hold, too, the first
// one certainly if it still reaches back to it.
func (g *Guard) common(ctx context.Context, open Open) []txlog.Pos {
	base, places := g.o.Log.Base(), []txlog.Pos(nil)
	for _, pos := range g.o.Book.places() {
		// Heads of entries that we hold no more, or not yet, prove nothing of ours.
		if pos.Seq > base.Seq && pos.Seq < g.o.Log.Head().Seq {
			places = append(places, pos)
		}
	}
	places = append([]txlog.Pos{base}, places...)
	held, refused := 0, len(places)
	for refused-held > near {
		i := (held + refused) / 2
		src, err := open(ctx, places[i])
		if err == nil {
			src.Close()
		}
		_, diverged := errors.AsType[*txlog.DivergedError](err)
		_, trimmed := errors.AsType[*txlog.TrimmedError](err)
		switch {
		case diverged:
			refused = i
		case err == nil || trimmed:
			held = i
		default:
			return nil
		}
	}
	return places[held:refused]
}

// compare reads what follows a common position until it differs from our log,
// and a signed head covers that.
func (g *Guard) compare(src Source, from string, common txlog.Pos) error {
	r, err := g.o.Log.Reader(common)
	if err != nil {
		return nil
	}
	defer r.Close()
	var (
		mine   []txlog.Entry
		theirs []txlog.Entry // from the first that differs
		have   txlog.Hash    // ours there
		heads  []Signed      // of entries that did not come yet
		size   int
		idle   int
	)
	for size <= maxPending {
		entries, notes, err := src.Next(gapBatch)
		if err != nil {
			return nil
		}
		if len(entries) == 0 && theirs == nil {
			if idle++; idle > maxIdle {
				return nil // it ends before it differs
			}
		}
		for i := range entries {
			if theirs == nil {
				if len(mine) == 0 {
					if mine, err = r.Next(atOnce, gapBatch); err != nil {
						return nil // it goes on where we end
					}
				}
				have, mine = mine[0].Hash, mine[1:]
				if entries[i].Hash == have {
					continue
				}
			}
			theirs = append(theirs, entries[i])
			size += len(entries[i].Frame())
		}
		for _, note := range notes {
			if h, fault := g.verify(note, g.o.Log.Dataset()); fault == nil && len(heads) < maxPledges {
				heads = append(heads, h)
			}
		}
		for _, h := range heads {
			if len(theirs) == 0 || h.Pos.Seq < theirs[0].Seq || h.Pos.Seq-theirs[0].Seq >= uint64(len(theirs)) {
				continue
			}
			if n := h.Pos.Seq - theirs[0].Seq; theirs[n].Pos() == h.Pos {
				return g.contradicted(from, theirs[0].Pos(), have, h, theirs[:n+1])
			}
		}
	}
	return nil
}
