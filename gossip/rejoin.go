package gossip

import (
	"math/rand/v2"
	"net"
	"slices"
	"time"
)

const (
	joinMin = 250 * time.Millisecond // first delay between attempts to join while alone
	joinMax = 15 * time.Second       // longest one

	// reconnectInterval is the mean time between attempts to reach somebody who
	// failed, or one of Options.Join who is not known: memberlist itself forgets
	// the dead after a while, and a healed partition would not be noticed.
	reconnectInterval = 15 * time.Second

	forgetInterval = 30 * time.Second
)

// keepJoined joins whom it should, and forgets whom it may, until g closes.
func (g *Gossip) keepJoined() {
	defer g.wg.Done()
	forget := time.NewTicker(min(forgetInterval, g.view.forgetAfter))
	defer forget.Stop()
	alone, backoff := true, joinMin
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		changed := g.view.wait()
		if g.view.alive() > 1 {
			if alone {
				alone = false
				next.Reset(jitter(reconnectInterval))
			}
		} else if !alone {
			alone, backoff = true, joinMin
			next.Reset(jitter(backoff))
		}
		select {
		case <-g.ctx.Done():
			return
		case <-changed:
		case now := <-forget.C:
			g.view.forget(now)
		case <-next.C:
			g.reach(alone)
			if alone {
				next.Reset(jitter(backoff))
				backoff = min(2*backoff, joinMax)
			} else {
				next.Reset(jitter(reconnectInterval))
			}
		}
	}
}

// reach tries to join all candidates while alone, and one otherwise.
func (g *Gossip) reach(alone bool) {
	candidates := g.candidates()
	if !alone && len(candidates) > 1 {
		i := rand.IntN(len(candidates))
		candidates = candidates[i : i+1]
	}
	for _, addr := range candidates {
		if g.ctx.Err() != nil {
			return
		}
		if _, err := g.list.Join([]string{addr}); err != nil {
			g.metrics.joins.WithLabelValues("failed").Inc()
			g.log.Debug("join failed", "addr", addr, "error", err)
			continue
		}
		g.metrics.joins.WithLabelValues("reached").Inc()
	}
}

// candidates returns the addresses of members that failed and of those to join
// that are not alive, this node's own left out.
func (g *Gossip) candidates() []string {
	failed, alive := g.view.lost()
	all := slices.Concat(g.join, failed)
	all = slices.DeleteFunc(all, func(addr string) bool { return alive[canonical(addr)] })
	slices.Sort(all)
	return slices.Compact(all)
}

// canonical writes a literal host:port as memberlist does; names stay as they are.
func canonical(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil {
		host = ip.String()
	}
	return net.JoinHostPort(host, port)
}

// jitter returns a time between a half and one and a half of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
