package peer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// mendRetry is how long the log's holes rest after nobody could fill one, at
	// first and at most.
	mendRetry, mendRetryMost = time.Second, time.Minute
	// mendTimeout bounds what one node may take for one hole.
	mendTimeout = 10 * time.Minute
)

// errStillOpen says that a hole is not closed though nothing failed: it became
// another one meanwhile.
var errStillOpen = errors.New("the hole of the log is still there")

// logMender fills the holes that damage leaves in the log of a node that is not
// the writer with what others hold. What it fetches proves itself: it has to lead
// from one side of the hole to the other.
type logMender struct {
	fleet  replica.Fleet
	client ranger
	logger *slog.Logger
	log    *txlog.Log

	// found is told of damage, and repaired of what was mended: fetched are bytes
	// from other nodes, damaged those that they make good.
	found    func(txlog.Damage)
	repaired func(kind string, fetched, damaged int64, err error)

	met chan struct{} // has a token when damage was met

	mu      sync.Mutex // guards pending
	pending []txlog.Damage

	// These are run's own, by the start of the hole.
	lost    map[txlog.Pos]int64         // bytes of the file that were damaged
	filled  map[txlog.Pos]int64         // bytes of entries that fill it
	fetched map[txlog.Pos]int64         // bytes since that was told
	failing map[txlog.Pos]bool          // that was told
	refused map[txlog.Pos][]txlog.Entry // what came when the disk took nothing
}

// ranger is *p2p.Client.
type ranger interface {
	Range(ctx context.Context, from p2p.Target, dataset txlog.DatasetID, after, until txlog.Pos, take func([]txlog.Entry) error) (bytes int64, err error)
}

func newLogMender(logger *slog.Logger) *logMender {
	return &logMender{
		logger: logger, found: func(txlog.Damage) {}, repaired: func(string, int64, int64, error) {}, met: make(chan struct{}, 1),
		lost: map[txlog.Pos]int64{}, filled: map[txlog.Pos]int64{}, fetched: map[txlog.Pos]int64{}, failing: map[txlog.Pos]bool{},
		refused: map[txlog.Pos][]txlog.Entry{},
	}
}

// damaged takes what txlog.Options.Damaged tells, also before run. What stays damaged is
// handed on before the read that met it returns: a writer must not go on.
func (m *logMender) damaged(d txlog.Damage) {
	if d.Kind == txlog.RefusedSegment {
		m.found(d)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending = append(m.pending, d)
	select {
	case m.met <- struct{}{}:
	default:
	}
}

// run fills holes until ctx ends.
func (m *logMender) run(ctx context.Context) {
	wait := mendRetry
	for ctx.Err() == nil {
		m.tell()
		var again <-chan time.Time
		if !m.fillAll(ctx) {
			again = time.After(wait)
			wait = min(2*wait, mendRetryMost)
		} else {
			wait = mendRetry
		}
		select {
		case <-m.met:
		case <-again:
		case <-ctx.Done():
		}
	}
}

// tell hands on what was found.
func (m *logMender) tell() {
	m.mu.Lock()
	pending := m.pending
	m.pending = nil
	m.mu.Unlock()
	for _, d := range pending {
		if d.Err != nil {
			m.found(d)
		}
		switch {
		case d.Kind != txlog.DamagedSegment: // cut off; what others have follows
			m.repaired(kindLogTail, 0, d.Lost, nil)
		case d.Hole == txlog.Hole{}: // all entries were saved
			m.repaired(kindLogSegment, 0, d.Lost, nil)
		default:
			m.lost[d.Hole.Start] += d.Lost
		}
	}
}

// fillAll tries to fill every hole once, and reports whether there is none left.
func (m *logMender) fillAll(ctx context.Context) (filled bool) {
	filled = true
	holes := m.log.Holes()
	if len(holes) == 0 {
		clear(m.refused) // whatever became of theirs
	}
	for _, h := range holes {
		m.filled[h.Start] = h.Filled
		err := m.fill(ctx, h)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil && !m.failing[h.Start]:
			m.failing[h.Start] = true
			m.repaired(kindLogSegment, m.fetched[h.Start], 0, err)
			delete(m.fetched, h.Start)
		case err == nil:
			// Of a file that was cut short or is gone only what fills the hole says how much.
			m.repaired(kindLogSegment, m.fetched[h.Start], max(m.lost[h.Start], m.filled[h.Start]), nil)
			delete(m.failing, h.Start)
			delete(m.fetched, h.Start)
			delete(m.lost, h.Start)
			delete(m.filled, h.Start)
			delete(m.refused, h.Start)
		}
		filled = filled && err == nil
	}
	return filled
}

// fill asks one node after the other for what is missing; each goes on where the
// one before ended. A nil error means that the hole is closed, or ctx ended. While the
// disk takes nothing nobody is asked.
func (m *logMender) fill(ctx context.Context, h txlog.Hole) error {
	if h.After == h.Until {
		return m.finish()
	}
	if entries := m.refused[h.Start]; len(entries) > 0 && (txlog.Pos{Seq: entries[0].Seq - 1, Hash: entries[0].Prev}) == h.After {
		if filled, err := m.keep(h.Start, entries); filled || err != nil && !is[*txlog.DivergedError](err) {
			return err
		}
	}
	delete(m.refused, h.Start)
	err := errors.New("no node in reach holds the entries")
	for _, u := range holders(m.fleet.Upstreams(), m.log.Dataset(), h) {
		filled := false
		if filled, err = m.ask(ctx, u, h.Start); filled || ctx.Err() != nil || m.refused[h.Start] != nil {
			return err
		}
		m.logger.Debug("a node could not fill a hole of the log", "node", u.Name, "after", h.Start.Seq, "until", h.Until.Seq, "err", err)
	}
	return err
}

// keep fills a hole with entries. What the disk does not take is kept in memory for the
// next try.
func (m *logMender) keep(start txlog.Pos, entries []txlog.Entry) (filled bool, err error) {
	delete(m.refused, start)
	filled, err = m.log.Fill(entries)
	switch {
	case err == nil:
		if entries[0].Seq == start.Seq+1 { // begun anew
			m.filled[start] = 0
		}
		for i := range entries {
			m.filled[start] += int64(len(entries[i].Frame()))
		}
	case !is[*txlog.DivergedError](err):
		m.refused[start] = entries
	}
	return filled, err
}

// ask fetches what is missing of a hole from one node. When that holds another history
// than what came from others so far, it is asked for the whole; when it merely does not
// reach that far it is of no use.
func (m *logMender) ask(ctx context.Context, u replica.Upstream, start txlog.Pos) (filled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, mendTimeout)
	defer cancel()
	holes := m.log.Holes()
	i := slices.IndexFunc(holes, func(h txlog.Hole) bool { return h.Start == start })
	if i < 0 {
		return true, nil // trimmed, or begun anew
	}
	h := holes[i]
	if h.After == h.Until {
		err := m.finish()
		return err == nil, err
	}
	take := func(entries []txlog.Entry) (err error) {
		filled, err = m.keep(start, entries)
		return err
	}
	for _, after := range []txlog.Pos{h.After, h.Start} {
		var n int64
		n, err = m.client.Range(ctx, p2p.Target{Name: u.Name, Addr: u.Addr}, u.Dataset, after, h.Until, take)
		m.fetched[start] += n
		if d, ok := errors.AsType[*txlog.DivergedError](err); !ok || d.Have.IsZero() || h.After == h.Start {
			break
		}
	}
	if !filled && err == nil {
		err = errStillOpen
	}
	return filled, err
}

// finish closes the holes that lack nothing any more: the disk failed when they
// were to be closed.
func (m *logMender) finish() error {
	filled, err := m.log.Fill(nil)
	if !filled && err == nil {
		err = errStillOpen
	}
	return err
}

// holders returns who has the entries of a hole, the nearest first.
func holders(all []replica.Upstream, dataset txlog.DatasetID, h txlog.Hole) []replica.Upstream {
	all = slices.DeleteFunc(slices.Clone(all), func(u replica.Upstream) bool {
		return u.Dataset != dataset || u.First > h.Start.Seq+1 || u.Head.Seq < h.Until.Seq
	})
	rank := func(u replica.Upstream) int {
		switch {
		case u.Near && !u.Manager:
			return 0
		case u.Near:
			return 1
		case !u.Manager:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(all, func(a, b replica.Upstream) int { return cmp.Compare(rank(a), rank(b)) })
	return all
}
