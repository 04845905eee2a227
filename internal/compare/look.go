package compare

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// sourceKey tells what a member says of itself from what the writer signed.
type sourceKey struct {
	who    string
	signed bool
}

// source is what is remembered of one who makes statements.
type source struct {
	last Statement
	// waiting is compared once this node's copy reaches it. Later ones do not take its
	// place before: a copy that is always a little behind would never be compared.
	waiting  Point
	compared Point
	parting  *Parting
	known    bool      // the parting was considered
	judged   time.Time // when, the last time
	stale    bool      // the parting is from before this copy was made anew
	settled  bool      // this copy was found to be the wrong one
}

// look compares what can be compared now.
func (c *Comparer) look(ctx context.Context) {
	out := c.o.Out()
	if out {
		c.wasOut = true
		return
	}
	if c.wasOut {
		c.wasOut = false
		for _, s := range c.sources {
			s.waiting, s.compared, s.stale = Point{}, Point{}, true
		}
	}
	said := c.said()
	present := map[sourceKey]bool{}
	for _, st := range said {
		key := sourceKey{st.Who, st.Signed}
		if st.Signed {
			key.who = "" // whoever is the writer now
		}
		present[key] = true
		s := c.sources[key]
		if s == nil {
			s = &source{}
			c.sources[key] = s
		}
		s.hear(st)
		c.compare(s)
	}
	maps.DeleteFunc(c.sources, func(key sourceKey, _ *source) bool { return !present[key] })
	c.publish()
	for _, s := range c.sources {
		open := s.parting != nil && !s.stale && !s.settled
		if open && (!s.known || time.Since(s.judged) >= judgeAgain) && !c.o.Out() && ctx.Err() == nil {
			c.consider(ctx, s, said)
			c.publish()
		}
	}
}

// said returns the newest statement of each.
func (c *Comparer) said() []Statement {
	said := c.o.Fleet.Said()
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[string]bool{}
	for i := range said {
		st := &said[i]
		names[st.Who] = true
		if p, ok := c.heard[st.Who]; ok && !st.Signed && p.Pos.Seq > st.Pos.Seq {
			st.Point = p
		}
	}
	clear(c.heard) // gossip says it by the next look, or somebody says it again
	return slices.DeleteFunc(said, func(st Statement) bool { return st.Pos.IsZero() })
}

func (s *source) hear(st Statement) {
	s.last = st
	if s.waiting == (Point{}) || st.Pos.Seq <= s.waiting.Pos.Seq {
		s.waiting = st.Point
	}
}

// compare compares what a source says with the own copy, once that is far enough.
func (c *Comparer) compare(s *source) {
	for s.waiting != (Point{}) && s.waiting.Pos.Seq <= c.o.Copy.Newest().Pos.Seq {
		theirs := s.waiting
		s.waiting = Point{}
		if s.last.Pos.Seq > theirs.Pos.Seq {
			s.waiting = s.last.Point
		}
		ours, known := c.o.Copy.At(theirs.Pos.Seq)
		if !known {
			continue // from before this process began, or too long ago
		}
		if theirs != s.compared {
			s.compared = theirs
			c.metrics.compared.WithLabelValues(resultOf(ours == theirs)).Inc()
		}
		switch {
		case ours == theirs:
			c.agreed(s)
		default:
			if s.parting == nil || s.stale {
				s.parting, s.known, s.settled = &Parting{Entry: theirs.Pos.Seq, Since: time.Now()}, false, false
			}
			s.stale = false
			p := s.parting
			p.Who, p.Manager, p.Writer, p.Signed = s.last.Who, s.last.Manager || s.last.Signed, s.last.Writer, s.last.Signed
			p.Ours, p.Theirs = ours, theirs
		}
	}
}

// agreed ends a parting.
func (c *Comparer) agreed(s *source) {
	if s.last.Signed || s.last.Writer {
		c.convictions, c.resigned = 0, false
	}
	if s.parting != nil {
		c.log.Info("a copy that differed from this node's agrees again", "with", s.parting.who(), "seq", s.compared.Pos.Seq)
	}
	s.parting, s.stale = nil, false
}

// publish shows the partings to others.
func (c *Comparer) publish() {
	var partings []Parting
	for _, s := range c.sources {
		if s.parting != nil {
			partings = append(partings, *s.parting)
		}
	}
	slices.SortFunc(partings, func(a, b Parting) int { return cmp.Or(cmp.Compare(a.Who, b.Who), cmp.Compare(a.Entry, b.Entry)) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partings = partings
}

// consider finds out where a copy parts from this one, and which is wrong.
func (c *Comparer) consider(ctx context.Context, s *source, said []Statement) {
	p := s.parting
	first := !s.known
	s.known, s.judged = true, time.Now()
	if first {
		p.Entry, p.Exact = c.search(ctx, s.last, p.Ours.Pos.Seq)
		c.log.Error("a copy of the dataset differs from this node's", "with", p.who(), "name", p.Who, "manager", p.Manager,
			"entry", p.Entry, "exact", p.Exact, "history", p.History(),
			"after", p.Ours.Pos.Seq, "ours", fmt.Sprintf("%x", p.Ours.Digest), "theirs", fmt.Sprintf("%x", p.Theirs.Digest))
		if c.o.Manager && p.Manager {
			c.log.Error("no snapshot is published until the managers agree again", "with", p.Who, "entry", p.Entry)
		}
	}
	if !c.wrong(ctx, p, said, first) {
		return
	}
	if c.convictions >= maxConvictions {
		if !c.resigned {
			c.resigned = true
			c.log.Error("this node's copy was made anew and differs from the writer's again: the writer's copy is in doubt; scrub it",
				"times", c.convictions, "entry", p.Entry)
		}
		return
	}
	if now, known := c.o.Copy.At(p.Ours.Pos.Seq); !known || now != p.Ours {
		s.stale = true // it was made anew while the others were asked
		return
	}
	s.settled = true
	c.convictions++
	c.metrics.convictions.Inc()
	c.o.Convict(&DivergedError{*p})
}
