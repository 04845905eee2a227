package mesh

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/internal/trust"
)

const (
	// maxLinks is how many nodes packets are sent to at a time; the one that was
	// not needed longest makes room. One name may be at two addresses, for a while.
	maxLinks        = 512
	maxLinksPerName = 2
	// linkQueue is how many packets wait for one node, and maxQueued how many bytes
	// for all.
	linkQueue = 64
	maxQueued = 8 << 20

	// linkIdle is how long a connection stays without packets. The other side
	// keeps it for longer, so that none is sent into a connection that it closes.
	linkIdle    = time.Minute
	inboundIdle = 3 * linkIdle
	// linkAge is how long a connection is used, so that certificates are looked at
	// again: who has none any more is gone after inboundAge.
	linkAge    = 30 * time.Minute
	inboundAge = 2 * linkAge

	dialTimeout  = 10 * time.Second
	writeTimeout = 5 * time.Second
	// flushTimeout is how long Shutdown waits for queues.
	flushTimeout = 250 * time.Millisecond
)

// Why a packet is lost that was not even tried.
const (
	queueFull = "queue_full"
	unknown   = "unknown" // nobody who is connected, or known to be there
)

// links are the connections that packets leave by.
type links struct {
	mu     sync.Mutex // guards what follows
	all    map[memberlist.Address]*link
	queued int           // bytes
	empty  chan struct{} // if not nil: closed once nothing is queued that can be sent
}

// link is the way to one node. A goroutine dials and then writes what is queued.
type link struct {
	to     memberlist.Address
	queue  chan []byte
	used   time.Time // guarded by links.mu
	cancel context.CancelFunc
}

// send queues a packet, and opens a link if there is none.
func (t *Transport) send(to memberlist.Address, packet []byte) {
	s := &t.links
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.ctx.Err() != nil {
		return
	}
	l := s.all[to]
	if l == nil {
		if !t.mayLink(to) {
			t.lost.WithLabelValues(unknown).Inc()
			return
		}
		s.makeRoom(to.Name)
		l = &link{to: to, queue: make(chan []byte, linkQueue)}
		var ctx context.Context
		ctx, l.cancel = context.WithCancel(t.ctx)
		s.all[to] = l
		t.wg.Add(1)
		go t.run(ctx, l)
	}
	l.used = time.Now()
	if s.queued+len(packet) > maxQueued {
		t.lost.WithLabelValues(queueFull).Inc()
		return
	}
	select {
	case l.queue <- packet:
		s.queued += len(packet)
	default:
		t.lost.WithLabelValues(queueFull).Inc()
	}
}

// mayLink reports whether packets may go there. Messages name nodes and addresses
// at will; nobody is dialled because of that.
func (t *Transport) mayLink(to memberlist.Address) bool {
	there, known := t.o.Where(to.Name, to.Addr)
	return there || !known && t.roster.connected(to.Name)
}

// makeRoom closes links for one more of this name, those that were not used longest.
// s.mu is held.
func (s *links) makeRoom(name string) {
	var any, namesake *link
	namesakes := 0
	older := func(a, b *link) bool { return b == nil || a.used.Before(b.used) }
	for _, l := range s.all {
		if older(l, any) {
			any = l
		}
		if l.to.Name == name {
			if namesakes++; older(l, namesake) {
				namesake = l
			}
		}
	}
	switch {
	case namesakes >= maxLinksPerName:
		s.close(namesake)
	case len(s.all) >= maxLinks:
		s.close(any)
	}
}

// close ends a link. s.mu is held.
func (s *links) close(l *link) {
	delete(s.all, l.to)
	l.cancel()
}

// retire takes an idle link off, unless there is something to send after all.
func (s *links) retire(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(l.queue) > 0 {
		return false
	}
	if s.all[l.to] == l {
		delete(s.all, l.to)
	}
	return true
}

// sent takes n bytes off the account of what is queued.
func (s *links) sent(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued -= n; s.queued == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

func (s *links) inUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// flush waits until nothing is queued.
func (s *links) flush(timeout time.Duration) {
	s.mu.Lock()
	if s.queued == 0 {
		s.mu.Unlock()
		return
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
	case <-time.After(timeout):
	}
}

// run is a link's life.
func (t *Transport) run(ctx context.Context, l *link) {
	defer t.wg.Done()
	err := t.carry(ctx, l)
	l.cancel()
	t.links.mu.Lock()
	if t.links.all[l.to] == l {
		delete(t.links.all, l.to)
	}
	t.links.mu.Unlock()
	// Nobody adds to the queue any more.
	for {
		select {
		case b := <-l.queue:
			t.links.sent(len(b))
			if t.ctx.Err() == nil {
				t.lost.WithLabelValues(string(trust.ReasonOf(err))).Inc()
			}
			continue
		default:
		}
		break
	}
	if err != nil && t.ctx.Err() == nil {
		t.o.Logger.Debug("gossip connection ended", "to", l.to.Name, "addr", l.to.Addr, "error", err)
	}
}

// carry connects, and writes packets until there are none for a while.
func (t *Transport) carry(ctx context.Context, l *link) error {
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, _, err := t.dial(dialCtx, l.to)
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// The other side says nothing here; what is read is the end.
	ended := make(chan error, 1)
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	idle, aged := time.NewTimer(linkIdle), time.NewTimer(linkAge)
	defer idle.Stop()
	defer aged.Stop()
	buf := []byte{kindPackets}
	for {
		select {
		case b := <-l.queue:
			buf = appendFrame(buf, b)
			err := writeWithin(conn, buf, writeTimeout)
			t.links.sent(len(b))
			if err != nil {
				t.lost.WithLabelValues(string(trust.ReasonOf(err))).Inc()
				return err
			}
			buf = buf[:0]
			idle.Reset(linkIdle)
		case <-aged.C:
			idle.Reset(0)
			aged.Reset(time.Second) // if there is something to send just now
		case err := <-ended:
			return err
		case <-idle.C:
			if t.links.retire(l) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func writeWithin(conn net.Conn, b []byte, timeout time.Duration) error {
	if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}
