package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/gossip/internal/mesh"
)

// delegate is what memberlist calls. Some of its calls hold memberlist's own
// locks: none may call memberlist back, or block.
type delegate struct{ *Gossip }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
)

func keyOf(n *memberlist.Node) key { return key{name: n.Name, addr: n.Address()} }

// NodeMeta is empty: facts outgrow it, and travel in records.
func (d delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg takes a broadcast record. With TLS, the transport took it already.
func (d delegate) NotifyMsg(b []byte) {
	if d.notary != nil {
		return
	}
	d.metrics.received(viaBroadcast, len(b))
	d.hear(b)
}

// GetBroadcasts gives out what fits the packet that memberlist is making.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	all := d.queue.GetBroadcasts(overhead, limit)
	for _, b := range all {
		d.metrics.sent(viaBroadcast, len(b))
	}
	return all
}

// LocalState gives out every record for a push-pull. Who joins knows nobody's
// certificates.
func (d delegate) LocalState(join bool) []byte {
	b, err := d.view.state(join, time.Now())
	if err != nil {
		d.log.Error("this node's record can not be signed", "error", err)
	}
	d.metrics.sent(viaPushPull, len(b))
	return b
}

// MergeRemoteState takes the other side's records in a push-pull. With TLS, the
// transport took them already.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	if d.notary != nil {
		return
	}
	d.metrics.received(viaPushPull, len(b))
	if err := splitState(b, func(b []byte) error { d.hear(b); return nil }); err != nil {
		d.metrics.records.WithLabelValues("bad").Inc()
		d.log.Debug("gossip state refused", "error", err)
	}
}

// NotifyAlive refuses members that can not be one of ours. memberlist keeps any
// that a stray datagram describes, and as long as one node lists a member of
// another protocol version nobody can join it.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	switch {
	case n.Name == "" || len(n.Name) > maxName || !utf8.ValidString(n.Name):
		return fmt.Errorf("name %q: want 1 to %d bytes of text", n.Name, maxName)
	case n.Addr.To16() == nil || n.Addr.IsUnspecified() || n.Addr.IsMulticast() || n.Port == 0:
		return fmt.Errorf("address %s can not be reached", n.Address())
	case n.PCur != protocol || n.PMin > protocol || n.PMax < protocol || n.DMin|n.DMax|n.DCur != 0:
		return fmt.Errorf("it speaks version %d of %d to %d and delegate version %d of %d to %d, and this node %d and 0",
			n.PCur, n.PMin, n.PMax, n.DCur, n.DMin, n.DMax, protocol)
	case !d.view.introduced(keyOf(n)):
		d.metrics.dropped.WithLabelValues(string(mesh.Unknown)).Inc()
		return errors.New("no verified record of it is known")
	}
	return nil
}

func (d delegate) NotifyJoin(n *memberlist.Node) {
	k := keyOf(n)
	if k.name == d.view.own().name {
		d.view.settle(k.addr)
	}
	d.view.joined(k, time.Now())
}

func (d delegate) NotifyLeave(n *memberlist.Node) { d.view.died(keyOf(n), time.Now()) }

// NotifyUpdate has nothing to say: the node's metadata is empty.
func (d delegate) NotifyUpdate(*memberlist.Node) {}

func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	now := time.Now()
	if d.conflicts.news(keyOf(other), now) {
		d.log.Warn("two nodes claim one name; the first is kept", "name", existing.Name,
			"kept", existing.Address(), "ignored", other.Address())
	}
	if existing.Name == d.view.own().name {
		if d.view.younger(keyOf(other)) {
			d.conflicts.note(keyOf(other), now)
		}
		select {
		case d.contested <- struct{}{}:
		default: // it is known
		}
	}
}

// hear decodes a record that nobody signed.
func (g *Gossip) hear(b []byte) {
	r, err := decodeRecord(b)
	switch {
	case errors.Is(err, errNewerRecord):
		g.metrics.records.WithLabelValues("newer").Inc()
		return
	case err != nil:
		g.metrics.records.WithLabelValues("bad").Inc()
		g.log.Debug("gossip record refused", "error", err)
		return
	}
	g.learn(r)
}

// learn passes a record on when it is news.
func (g *Gossip) learn(r record) {
	switch g.view.hear(r, time.Now()) {
	case applied:
		g.metrics.records.WithLabelValues("applied").Inc()
		g.broadcast(r)
		if g.mesh != nil {
			g.mesh.Introduce(r.name, r.addr)
		}
	case stale:
		g.metrics.records.WithLabelValues("stale").Inc()
	case overflow:
		g.metrics.records.WithLabelValues("overflow").Inc()
	case reborn:
		g.metrics.records.WithLabelValues("reborn").Inc()
		g.log.Info("an earlier life of this node was ahead of its clock; incarnation raised")
		g.publishSoon()
	}
}

// retransmits times log10 of the fleet is how often each node sends a record
// on. With memberlist's own 4 one of 20 nodes misses a record now and then, and
// hears it only in its next push-pull.
const retransmits = 5

// broadcast queues a record in place of an older one of the same node.
func (g *Gossip) broadcast(r record) {
	g.queue.QueueBroadcast(queued{name: r.name + "\x00" + r.addr, raw: r.wire(r.young(time.Now()))})
}

// broadcastSelf queues this node's own record.
func (g *Gossip) broadcastSelf() {
	r, err := g.view.signedSelf(time.Now())
	if err != nil {
		g.log.Error("this node's record can not be signed", "error", err)
		return
	}
	g.broadcast(r)
}

// queued is a record in the broadcast queue.
type queued struct {
	name string
	raw  []byte
}

var _ memberlist.NamedBroadcast = queued{}

func (q queued) Name() string    { return q.name }
func (q queued) Message() []byte { return q.raw }
func (q queued) Finished()       {}
func (q queued) Invalidates(o memberlist.Broadcast) bool {
	other, ok := o.(queued)
	return ok && other.name == q.name
}

// ConflictError means that another process holds this node's name.
type ConflictError struct {
	Name string
	Addr string    // the other's gossip address
	At   time.Time // when it was last heard
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("another node at %s is called %s too, and was there first: give one of them another name", e.Addr, e.Name)
}

// A conflict counts once it was noticed over conflictAfter, longer than a dead
// predecessor is believed to be alive, and as long as it is noticed again
// within conflictFor: each attempt to settle it does.
const (
	conflictAfter = 25 * time.Second
	conflictFor   = 90 * time.Second
	conflictLog   = time.Minute
)

// conflicts remembers who else claims names.
type conflicts struct {
	mu          sync.Mutex // guards what follows
	logged      map[key]time.Time
	other       key
	first, last time.Time
}

// news reports whether a conflict is worth a line in the log.
func (c *conflicts) news(k key, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, at := range c.logged {
		if now.Sub(at) >= conflictLog {
			delete(c.logged, k)
		}
	}
	if _, ok := c.logged[k]; ok || len(c.logged) >= maxOrphans {
		return false
	}
	if c.logged == nil {
		c.logged = make(map[key]time.Time)
	}
	c.logged[k] = now
	return true
}

// note remembers that k lives under this node's name.
func (c *conflicts) note(k key, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.other != k || now.Sub(c.last) >= conflictFor {
		c.other, c.first = k, now
	}
	c.last = now
}

func (c *conflicts) current(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last.Sub(c.first) < conflictAfter || now.Sub(c.last) >= conflictFor {
		return nil
	}
	return &ConflictError{Name: c.other.name, Addr: c.other.addr, At: c.last}
}

// logBridge takes memberlist's log lines to slog, until it is stopped:
// memberlist's goroutines outlive its Shutdown for a moment.
type logBridge struct {
	log     *slog.Logger
	stopped atomic.Bool
}

func (b *logBridge) Write(p []byte) (int, error) {
	if !b.stopped.Load() {
		b.log.Debug("memberlist", "message", string(bytes.TrimSpace(p)))
	}
	return len(p), nil
}

func (b *logBridge) stop() { b.stopped.Store(true) }
