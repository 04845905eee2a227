package mesh

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// What one identity may send, about ten times what a member of a busy fleet does,
// and have open.
const (
	messageRate, messageBurst = 500, 2000          // a second
	byteRate, byteBurst       = 512 << 10, 2 << 20 // of packets, a second
	connRate, connBurst       = 5, 32              // connections, a second
	// A ping is answered, and the answer takes along what waits to be broadcast: so
	// often at most it is wasted on one member. A member pings once a second.
	pingRate, pingBurst = 5, 30
	// Suspicions are refuted, and both are broadcast.
	suspectRate, suspectBurst = 50, 1000

	maxPacketConns = 4  // the oldest makes room: its node may have died without a word
	maxStreams     = 4  // at a time
	maxConns       = 16 // of any kind, or not known yet

	// badCost is how many messages a bad one counts for: it was dear to check.
	badCost = 20
	// floodPause is how long a connection is not read after a flood: the rest waits
	// with the sender.
	floodPause = 100 * time.Millisecond
	// maxStrikes is how many floods in a row end the connection.
	maxStrikes = 20
)

// maxInbound is how many connections there may be in all.
const maxInbound = 4096

// roster is who is connected, and what each may still send.
type roster struct {
	mu      sync.Mutex // guards what follows and the conns and streams of members
	members map[trust.Identity]*member
	names   map[string]int // connections by name
	conns   int
	swept   time.Time
}

// member is one identity, which may have several connections.
type member struct {
	conns    int
	streams  int
	packets  []*connection // its packet connections, the oldest first
	opened   *rate.Limiter
	bytes    *rate.Limiter
	messages *rate.Limiter
	pings    *rate.Limiter
	suspects *rate.Limiter
	left     time.Time // when conns became 0
}

// sweepAfter is how long the budget of an identity without connections is kept: by
// then it is full again.
const sweepAfter = time.Minute

func tooMany(format string, args ...any) error {
	return &trust.RefusedError{Reason: TooMany, Err: fmt.Errorf(format, args...)}
}

func flood(what string) error {
	return &trust.RefusedError{Reason: Flood, Err: fmt.Errorf("more %s than a member may send", what)}
}

// enter counts a new connection of id.
func (r *roster) enter(id trust.Identity, now time.Time) (*member, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.swept) >= sweepAfter {
		r.swept = now
		for id, m := range r.members {
			if m.conns == 0 && now.Sub(m.left) >= sweepAfter {
				delete(r.members, id)
			}
		}
	}
	m := r.members[id]
	switch {
	case r.conns >= maxInbound:
		return nil, tooMany("%d connections are open already", r.conns)
	case m != nil && !m.opened.AllowN(now, 1):
		return nil, flood("connections")
	case m != nil && m.conns >= maxConns:
		return nil, tooMany("%d connections of this member are open already", m.conns)
	}
	m = r.member(id)
	r.conns++
	r.names[id.Name]++
	m.conns++
	return m, nil
}

// meet returns who is at the other end of a connection that this side made.
func (r *roster) meet(id trust.Identity) *member {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.member(id)
	m.conns++
	return m
}

// member returns the member of an identity. r.mu is held.
func (r *roster) member(id trust.Identity) *member {
	m := r.members[id]
	if m == nil {
		m = &member{
			opened:   rate.NewLimiter(connRate, connBurst),
			bytes:    rate.NewLimiter(byteRate, byteBurst),
			messages: rate.NewLimiter(messageRate, messageBurst),
			pings:    rate.NewLimiter(pingRate, pingBurst),
			suspects: rate.NewLimiter(suspectRate, suspectBurst),
		}
		r.members[id] = m
	}
	return m
}

// leave is the end of a connection that entered, or whose other end was met.
func (r *roster) leave(c *connection, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !c.ours {
		r.conns--
		if r.names[c.id.Name]--; r.names[c.id.Name] == 0 {
			delete(r.names, c.id.Name)
		}
	}
	if c.member.conns--; c.member.conns == 0 {
		c.member.left = now
	}
}

// carryPackets makes c one of its member's packet connections. It returns one that
// is to be closed for it, or nil.
func (r *roster) carryPackets(c *connection) (oldest *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := c.member
	m.packets = append(m.packets, c)
	if len(m.packets) > maxPacketConns {
		oldest = m.packets[0]
		m.packets = append([]*connection(nil), m.packets[1:]...)
	}
	return oldest
}

// dropPackets takes c off its member's packet connections.
func (r *roster) dropPackets(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, other := range c.member.packets {
		if other == c {
			c.member.packets = append(c.member.packets[:i:i], c.member.packets[i+1:]...)
			return
		}
	}
}

// over returns the newest connection from a node that packets can go back over, or nil.
// Its maker, which ends it, does not do so just now.
func (r *roster) over(node memberlist.Address) (newest *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[node.Name] == 0 {
		return nil
	}
	for id, m := range r.members {
		if id.Name != node.Name {
			continue
		}
		for _, c := range m.packets {
			if c.from == node.Addr && c.lasts() > 0 && (newest == nil || c.born.After(newest.born)) {
				newest = c
			}
		}
	}
	return newest
}

// openStream counts a stream, which closeStream ends.
func (r *roster) openStream(m *member) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.streams >= maxStreams {
		return tooMany("%d exchanges of this member are open already", m.streams)
	}
	m.streams++
	return nil
}

func (r *roster) closeStream(m *member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m.streams--
}

// connected reports whether somebody of that name is.
func (r *roster) connected(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[name] > 0
}

// inUse returns how many connections are open.
func (r *roster) inUse() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

// take charges a packet of n messages and so many bytes.
func (m *member) take(messages, bytes int, now time.Time) error {
	if !m.bytes.AllowN(now, bytes) {
		return flood("bytes")
	}
	if !m.messages.AllowN(now, messages) {
		return flood("messages")
	}
	return nil
}

// takeMessage charges a message once more if it is of a dear kind.
func (m *member) takeMessage(kind byte, now time.Time) error {
	switch kind {
	case pingMsg, indirectPingMsg:
		if !m.pings.AllowN(now, 1) {
			return flood("pings")
		}
	case suspectMsg, deadMsg:
		if !m.suspects.AllowN(now, 1) {
			return flood("suspicions")
		}
	}
	return nil
}

// fine charges for bad messages, if need be in advance.
func (m *member) fine(bad int, now time.Time) {
	if bad > 0 {
		m.messages.ReserveN(now, min(badCost*bad, messageBurst))
	}
}
