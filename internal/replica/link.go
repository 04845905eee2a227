package replica

import (
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// link is what following found out about where the log ends, for the life to
// judge whether a copy is up to date.
type link struct {
	mu     sync.Mutex // guards what follows
	live   bool       // an upstream speaks with us
	ever   bool       // one did, since start
	head   txlog.Pos  // the end of the log, as far as known
	goal   uint64     // the head's seq when the present catch-up began
	goalIs bool
}

// near is how many entries behind a copy may be to count as caught up once it
// reached the goal: on a busy dataset it is never level for long.
const near = 1000

// begin starts a catch-up: to be up to date means to reach what is known now.
func (l *link) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live, l.goalIs = false, false
}

// hear records a sign of life and where the log ends.
func (l *link) hear(head txlog.Pos) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live, l.ever, l.head = true, true, head
	if !l.goalIs {
		l.goal, l.goalIs = head.Seq, true
	}
}

// lose records that no upstream speaks any more.
func (l *link) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = false
}

func (l *link) contacted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ever
}

// caughtUp reports whether a copy at seq is up to date.
func (l *link) caughtUp(seq uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.live:
		return false
	case seq >= l.head.Seq:
		return true
	case seq < l.goal:
		return false
	case l.head.Seq-seq <= near:
		return true
	}
	l.goal = l.head.Seq // it moved on while we came here
	return false
}

// head is a position and its time by the writer's clock.
type head struct {
	pos  txlog.Pos
	time time.Time
}

func further(a, b head) head {
	if b.pos.Seq > a.pos.Seq || b.pos == a.pos && a.time.IsZero() {
		return b
	}
	return a
}
