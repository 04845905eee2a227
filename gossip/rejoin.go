package gossip

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"time"
)

const (
	joinMin = 250 * time.Millisecond // first delay between attempts to join while alone
	joinMax = 15 * time.Second       // longest one; there is a warning each time

	// reconnectInterval is the mean time between attempts to reach somebody who
	// failed, or one of Options.Join who is not known: memberlist itself forgets
	// the dead after a while, and a healed partition would not be noticed.
	reconnectInterval = 15 * time.Second

	// A contested name is claimed again every settleEvery, until nobody contested
	// it for settleFor: the others keep a dead predecessor for a few seconds, and
	// say nothing while they suspect it.
	settleEvery = 2 * time.Second
	settleFor   = 15 * time.Second

	// wantedEvery is the least time between two exchanges for certificates.
	wantedEvery = 3 * time.Second

	resolveTimeout = 5 * time.Second
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
	wanted := g.wanted
	var rested <-chan time.Time
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
			g.tidy(now)
		case name := <-wanted:
			// Only one who joins is told everybody's certificates.
			if addr := g.view.addrOf(name); addr != "" {
				g.reach([]string{addr}, 1)
			} else {
				g.reach(g.view.addrs()[Alive], 1)
			}
			wanted, rested = nil, time.After(wantedEvery)
		case <-rested:
			wanted, rested = g.wanted, nil
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
				if missing := g.missing(); !g.reach(missing, maxReach) && joinDelay == joinMax && len(g.join) > 0 {
					g.log.Warn("no other member can be reached; trying on", "tried", missing, "join", g.join)
				}
				next.Reset(jitter(joinDelay))
				joinDelay = min(2*joinDelay, joinMax)
			} else {
				g.reach(g.missing(), 1)
				next.Reset(jitter(reconnectInterval))
			}
		}
	}
}

// tidy forgets what may be forgotten, and publishes when this node has a new
// certificate.
func (g *Gossip) tidy(now time.Time) {
	g.view.forget(now)
	if g.notary == nil {
		return
	}
	g.notary.forget(now)
	if g.view.outdated() {
		g.publishSoon()
	}
}

// maxReach is how many nodes a lonely one tries at a time.
const maxReach = 16

// reach exchanges state with up to n of the nodes at addrs, picked at random,
// and reports whether one answered.
func (g *Gossip) reach(addrs []string, n int) (reached bool) {
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for _, addr := range addrs[:min(n, len(addrs))] {
		if g.ctx.Err() != nil {
			return reached
		}
		if _, err := g.list.Join([]string{addr}); err != nil {
			g.metrics.joins.WithLabelValues("failed").Inc()
			g.log.Debug("join failed", "addr", addr, "error", err)
			continue
		}
		g.metrics.joins.WithLabelValues("reached").Inc()
		reached = true
	}
	return reached
}

// missing returns the addresses of members that failed and of those to join
// that are not alive.
func (g *Gossip) missing() []string {
	known := g.view.addrs()
	all := known[Failed]
	for _, addr := range g.join {
		resolved, err := resolve(g.ctx, addr)
		if err != nil {
			g.metrics.joins.WithLabelValues("failed").Inc()
			g.log.Debug("join failed", "addr", addr, "error", err)
		}
		all = append(all, resolved...)
	}
	all = slices.DeleteFunc(all, func(addr string) bool {
		return addr == g.addr.String() || slices.Contains(known[Alive], addr)
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// resolve returns the addresses of a host:port as memberlist writes them. It
// spares memberlist's own look-up, which does not know when to stop.
func resolve(ctx context.Context, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, len(ips))
	for i, ip := range ips {
		addrs[i] = net.JoinHostPort(ip.Unmap().String(), port)
	}
	return addrs, nil
}

// jitter returns a time between a half and one and a half of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
