package torture

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// probes find out what the network between hosts does, beside the nodes: one datagram
// at a time.
type probes struct {
	hosts []*lab.Host
	conns []net.PacketConn
	next  atomic.Uint64
	wg    sync.WaitGroup

	mu      sync.Mutex // guards waiting
	waiting map[uint64]chan struct{}
}

func newProbes(ctx context.Context, hosts []*lab.Host) (_ *probes, err error) {
	p := &probes{hosts: hosts, waiting: map[uint64]chan struct{}{}}
	for _, h := range hosts {
		conn, err := h.ListenPacket(ctx, net.JoinHostPort(h.Addr().String(), "9"))
		if err != nil {
			p.close()
			return nil, err
		}
		p.conns = append(p.conns, conn)
		p.wg.Go(func() { p.receive(conn) })
	}
	return p, nil
}

func (p *probes) close() {
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.wg.Wait()
}

func (p *probes) receive(conn net.PacketConn) {
	var b [64]byte
	for {
		n, _, err := conn.ReadFrom(b[:])
		if err != nil {
			return
		}
		if n < 8 {
			continue
		}
		p.mu.Lock()
		if came, ok := p.waiting[binary.BigEndian.Uint64(b[:])]; ok {
			close(came)
			delete(p.waiting, binary.BigEndian.Uint64(b[:]))
		}
		p.mu.Unlock()
	}
}

// travel returns how long a datagram takes from one host to another, false if it did not
// come within limit.
func (p *probes) travel(from, to int, limit time.Duration) (time.Duration, bool, error) {
	token := p.next.Add(1)
	came := make(chan struct{})
	p.mu.Lock()
	p.waiting[token] = came
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, token)
		p.mu.Unlock()
	}()
	began := time.Now()
	b := binary.BigEndian.AppendUint64(nil, token)
	if _, err := p.conns[from].WriteTo(b, &net.UDPAddr{IP: p.hosts[to].Addr().AsSlice(), Port: 9}); err != nil {
		return 0, false, fmt.Errorf("probe from %s to %s: %w", p.hosts[from].Addr(), p.hosts[to].Addr(), err)
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-came:
		return time.Since(began), true, nil
	case <-t.C:
		return 0, false, nil
	}
}

// Limits of a probe.
const (
	lostAfter = 80 * time.Millisecond // on a link that is cut nothing ever comes
	comesIn   = 3 * time.Second       // on one that is not it does, on a busy machine too
)

// lost reports whether nothing goes from one host to another.
func (p *probes) lost(from, to int) (bool, error) {
	_, came, err := p.travel(from, to, lostAfter)
	return !came, err
}

// comes reports whether something goes from one host to another.
func (p *probes) comes(from, to int) (bool, error) {
	for range 5 {
		if _, came, err := p.travel(from, to, comesIn/5); came || err != nil {
			return came, err
		}
	}
	return false, nil
}
