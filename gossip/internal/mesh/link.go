package mesh

import (
	"context"
	"errors"
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

	// linkIdle is how long a connection stays without packets either way: then the side
	// that made it ends it. The other side sends none over it for a while before that,
	// so that none is lost, and keeps it for longer.
	linkIdle    = time.Minute
	backIdle    = linkIdle * 3 / 4
	inboundIdle = 3 * linkIdle
	// linkAge is how long a connection is used, so that certificates are looked at
	// again, and the same: who has none any more is gone after inboundAge.
	linkAge    = 30 * time.Minute
	backAge    = linkAge - linkIdle
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

var errEnded = errors.New("the connection ended")

// links are the ways to the nodes that packets are sent to.
type links struct {
	mu     sync.Mutex // guards what follows
	all    map[memberlist.Address]*link
	queued int           // bytes
	empty  chan struct{} // if not nil: closed once nothing is queued that can be sent
}

// link is the way to one node. A goroutine writes what is queued: over a connection of
// that node's if there is one, else it dials.
type link struct {
	to     memberlist.Address
	over   *connection // nil: dial
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
		l = &link{to: to, over: t.roster.over(to), queue: make(chan []byte, linkQueue)}
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

// carry writes packets until there are none for a while.
func (t *Transport) carry(ctx context.Context, l *link) error {
	if l.over != nil {
		// Its maker may just have ended it.
		err := t.write(ctx, l, l.over, nil)
		if ctx.Err() != nil || t.links.retire(l) {
			return err
		}
	}
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, id, err := t.dial(dialCtx, l.to)
	cancel()
	if err != nil {
		return err
	}
	c := newConnection(conn, id, t.roster.meet(id))
	c.ours = true
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		err := late(t.receive(c))
		conn.Close()
		t.roster.leave(c, time.Now())
		if trust.ReasonOf(err) != trust.Failed && ctx.Err() == nil {
			t.dropped(id.String(), err)
		}
	}()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return t.write(ctx, l, c, appendPackets(nil, t.port()))
}

// lasts returns for how long packets may be sent over a connection from now on, if none
// is sent or comes.
func (c *connection) lasts() time.Duration {
	idle, age := linkIdle, linkAge
	if !c.ours {
		idle, age = backIdle, backAge
	}
	return min(idle-c.idle(), age-time.Since(c.born))
}

// write writes packets to a connection, after what it begins with, until there are none
// for a while or the connection ends.
func (t *Transport) write(ctx context.Context, l *link, c *connection, buf []byte) error {
	over := time.NewTimer(c.lasts())
	defer over.Stop()
	for {
		select {
		case <-c.ended: // what is written now would be lost, and nobody told
			return errEnded
		default:
		}
		select {
		case b := <-l.queue:
			buf = appendFrame(buf, b)
			c.use()
			err := writeWithin(c, buf, writeTimeout)
			t.links.sent(len(b))
			if err != nil {
				t.lost.WithLabelValues(string(trust.ReasonOf(err))).Inc()
				c.Close()
				return err
			}
			buf = buf[:0]
		case <-over.C:
			left := c.lasts()
			switch {
			case left > 0:
			case t.links.retire(l):
				return nil
			case !c.ours: // there is something to send just now: over another
				return nil
			default:
				left = time.Second
			}
			over.Reset(left)
		case <-c.ended:
			return errEnded
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
