package p2p

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// TestRepairBeforeRebuild: of two that fetch from one seeder in the swarm, the
// one whose replica is out of service gets what it can send. They dialled the
// seeder, which has to find out who they are.
func TestRepairBeforeRebuild(t *testing.T) {
	const rate = 2 << 20 // what a busy machine can do, or the repair leaves some of it
	p := newPayload(t, 4<<20)
	seeder := newNode(t, "seeder", false, func(o *SwarmOptions) { o.Upload = limit(rate) })
	broken, fresh := newNode(t, "broken", false), newNode(t, "fresh", false)
	isBroken := broken.Peer
	isBroken.Repairing = true
	seeder.SetPeers([]Peer{isBroken, fresh.Peer})
	broken.SetPeers([]Peer{seeder.Peer})
	fresh.SetPeers([]Peer{seeder.Peer})
	seed(t, seeder, p)
	began := time.Now()
	rebuild := start(t, fresh, p)
	eventually(t, "the rebuild begins", func() bool { return rebuild.last.Load().Done > 0 })
	atStart := rebuild.last.Load().Done
	repair := start(t, broken, p)
	repair.wait(t)
	meanwhile := rebuild.last.Load().Done - atStart
	t.Logf("the repair took %v; %d of %d bytes went to the rebuild meanwhile", time.Since(began), meanwhile, p.torrent.Size())
	if meanwhile > p.torrent.Size()/3 {
		t.Errorf("a rebuild got %d bytes while a repair got %d", meanwhile, p.torrent.Size())
	}
	rebuild.wait(t)
	if took, least := time.Since(began), time.Duration(float64(2*p.torrent.Size())/rate*float64(time.Second)); took < least*9/10 {
		t.Errorf("both took %v, at this rate at least %v", took, least)
	}
}

// TestPiecesWithinBudget: a source keeps to its limit, and what becomes urgent
// goes first within a second.
func TestPiecesWithinBudget(t *testing.T) {
	const rate = 8 << 20
	s := newStockpile(t, 64<<20)
	egress := limit(rate)
	_, addr := serveSource(t, listenTCP(t), ServerOptions{Pieces: s, Egress: egress})
	received := map[string]*atomic.Int64{"a1": {}, "b1": {}}
	ended := make(chan error)
	deadline := time.Now().Add(4 * time.Second)
	for name, n := range received {
		c := askAs(t, name)
		go func() {
			buf := make([]byte, s.torrent.PieceLength())
			for i := 0; time.Now().Before(deadline); i++ {
				if err := c.Piece(t.Context(), Target{Addr: addr}, s.torrent.InfoHash(), i%s.torrent.Pieces(), buf); err != nil {
					ended <- err
					return
				}
				n.Add(int64(len(buf)))
			}
			ended <- nil
		}()
	}
	count := func() (a, b int64) { return received["a1"].Load(), received["b1"].Load() }
	time.Sleep(time.Until(deadline.Add(-3 * time.Second)))
	a0, b0 := count()
	if total := float64(a0 + b0); total < rate*0.8 || total > rate*1.1 {
		t.Errorf("%.2f of a second's worth was sent in the first second", total/rate)
	}
	if share := float64(a0) / float64(a0+b0); share < 0.4 || share > 0.6 {
		t.Errorf("one of two equal askers got %.2f", share)
	}
	s.mu.Lock()
	s.peers["b1"] = Peer{Colo: "b", Repairing: true}
	s.mu.Unlock()
	time.Sleep(time.Until(deadline.Add(-2 * time.Second)))
	a1, b1 := count()
	time.Sleep(time.Until(deadline))
	a2, b2 := count()
	if share := float64(b2-b1) / float64(a2-a1+b2-b1); share < 0.85 {
		t.Errorf("a second after it became urgent, it got %.2f", share)
	}
	if total := float64(a2 + b2); total < 4*rate*0.93 || total > 4*rate*1.04 {
		t.Errorf("%.3f of four seconds' worth was sent in four seconds", total/rate/4)
	}
	if err := errors.Join(<-ended, <-ended); err != nil {
		t.Error(err)
	}
}
