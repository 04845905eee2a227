package compare

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// searched is how many entries back copies are compared: as far as stores remember.
	searched = 16384
	// asked is how many others are asked what they have, and patience how long
	// they may take together.
	asked    = 5
	patience = 3 * time.Second
	// Those who do not know are asked again for reachWithin: they may be about to get there.
	reachWithin = time.Second
	reachGap    = 100 * time.Millisecond
)

// search returns the first entry, up to one after which they do, after which a node's
// copy differs from this one, and whether they agree after the one before.
func (c *Comparer) search(ctx context.Context, with Statement, differs uint64) (entry uint64, exact bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	low := differs - min(differs, searched) // they agree there, or nobody knows
	exact = low == 0
	for low+1 < differs && with.Who != "" {
		middle := low + (differs-low)/2
		ours, known := c.o.Copy.At(middle)
		var theirs Point
		if known {
			var err error
			theirs, err = c.o.Fleet.Ask(ctx, with.Who, middle)
			if err != nil && !isUnknown(err) {
				return differs, false
			}
			known = err == nil
		}
		switch {
		case known && ours != theirs:
			differs = middle
		default:
			low, exact = middle, known
		}
	}
	return differs, exact && low+1 == differs
}

// wrong reports whether it is this node's copy that is wrong.
func (c *Comparer) wrong(ctx context.Context, p *Parting, said []Statement, tell bool) bool {
	decides := p.Signed || p.Writer && !c.o.Signed
	switch {
	case c.o.Writer:
		return false // what it signs and says is what others compare theirs with
	case p.History():
		return false // the chain tells who is wrong
	case c.o.Signed && !p.Signed:
		return false // anybody may say that
	}
	with, against := c.poll(ctx, p, said)
	switch {
	case decides && with >= 2 && against == 0:
		if tell {
			c.log.Error("the writer's copy differs from everybody else's: it is in doubt; scrub it, and restore it if it is damaged",
				"entry", p.Entry, "exact", p.Exact, "agree_with_this_node", with)
		}
		return false
	case decides:
		return true
	}
	return with == 0 && against >= 1
}

// poll asks others what they had where two copies differ.
func (c *Comparer) poll(ctx context.Context, p *Parting, said []Statement) (with, against int) {
	jury := slices.Clone(said)
	rand.Shuffle(len(jury), func(i, j int) { jury[i], jury[j] = jury[j], jury[i] })
	slices.SortStableFunc(jury, func(a, b Statement) int { return cmp.Compare(rank(a), rank(b)) })
	jury = slices.DeleteFunc(jury, func(s Statement) bool { return s.Signed || !s.Alive || s.Who == p.Who })
	jury = jury[:min(len(jury), asked)]
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answers := make(chan Point)
	for _, s := range jury {
		go func() {
			answers <- c.ask(ctx, s.Who, p.Ours.Pos.Seq)
		}()
	}
	for range jury {
		switch <-answers {
		case p.Ours:
			with++
		case p.Theirs:
			against++
		}
	}
	return with, against
}

// ask asks one of the others. Who does not answer says nothing.
func (c *Comparer) ask(ctx context.Context, who string, seq uint64) Point {
	began := time.Now()
	for {
		point, err := c.o.Fleet.Ask(ctx, who, seq)
		if err == nil {
			return point
		}
		if !isUnknown(err) || time.Since(began) >= reachWithin {
			return Point{}
		}
		select {
		case <-time.After(reachGap):
		case <-ctx.Done():
			return Point{}
		}
	}
}

// rank orders whom to ask.
func rank(s Statement) int {
	switch {
	case s.Writer:
		return 0
	case s.Manager:
		return 1
	}
	return 2
}
