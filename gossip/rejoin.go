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

	// A contested name is claimed again every settleEvery, until nobody contested
	// it for settleFor: the others keep a dead predecessor for a few seconds, and
	// say nothing while they suspect it.
	settleEvery = 2 * time.Second
	settleFor   = 15 * time.Second

	forgetInterval = 30 * time.Second
)

// keepJoined joins whom it should, and forgets whom it may, until g closes.
func (g *Gossip) keepJoined() {
	defer g.wg.Done()
	forget := time.NewTicker(min(forgetInterval, g.view.forgetAfter))
	defer forget.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	settle := time.NewTimer(settleEvery)
	settle.Stop()
	defer settle.Stop()
	var settleUntil time.Time
	alone, joinDelay := true, joinMin
	for {
		changed := g.view.wait()
		if now := g.view.alive() <= 1; now != alone {
			alone, joinDelay = now, joinMin
			if alone {
				next.Reset(jitter(joinDelay))
			} else {
				next.Reset(jitter(reconnectInterval))
			}
		}
		select {
		case <-g.ctx.Done():
			return
		case <-changed:
		case now := <-forget.C:
			g.view.forget(now)
		case <-g.contested:
			now := time.Now()
			if now.After(settleUntil) {
				settle.Reset(settleEvery)
			}
			settleUntil = now.Add(settleFor)
		case now := <-settle.C:
			g.reach(g.view.addrs()[Alive], 1)
			if now.Before(settleUntil) {
				settle.Reset(settleEvery)
			}
		case <-next.C:
			if alone {
				g.reach(g.missing(), len(g.join)+maxReach)
				next.Reset(jitter(joinDelay))
				joinDelay = min(2*joinDelay, joinMax)
			} else {
				g.reach(g.missing(), 1)
				next.Reset(jitter(reconnectInterval))
			}
		}
	}
}

// maxReach is how many failed members a lonely node tries at once.
const maxReach = 10

// reach exchanges state with up to n of the nodes at addrs, picked at random.
func (g *Gossip) reach(addrs []string, n int) {
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for _, addr := range addrs[:min(n, len(addrs))] {
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

// missing returns the addresses of members that failed and of those to join
// that are not alive.
func (g *Gossip) missing() []string {
	known := g.view.addrs()
	all := slices.Concat(known[Failed], g.join)
	all = slices.DeleteFunc(all, func(addr string) bool {
		addr = canonical(addr)
		return addr == g.addr.String() || slices.Contains(known[Alive], addr)
	})
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
