package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/txlog"
)

// writerClock is years away from the nodes' clocks: nothing may compare them.
var writerClock = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)

func datasetID(b byte) (id txlog.DatasetID) {
	id[0] = b
	return id
}

// history makes the entries 1 to n of a dataset; salt makes another history
// from entry `from` on.
func history(id txlog.DatasetID, n int, from int, salt string) []txlog.Entry {
	var h []txlog.Entry
	return extend(h, id, n, from, salt)
}

func extend(h []txlog.Entry, id txlog.DatasetID, n, from int, salt string) []txlog.Entry {
	for len(h) < n {
		seq := len(h) + 1
		ops := []txlog.Op{{Kind: txlog.Put, Key: []byte("k"), Value: fmt.Appendf(nil, "%d", seq)}}
		switch {
		case seq == 1:
			ops = []txlog.Op{{Kind: txlog.Init, Value: id[:]}}
		case seq >= from:
			ops[0].Value = append(ops[0].Value, salt...)
		}
		e, err := txlog.Seal(at(h, seq-1), 1, writerClock.Add(time.Duration(seq)*time.Second), ops)
		if err != nil {
			panic(err)
		}
		h = append(h, e)
	}
	return h
}

// at returns the position of a seq in a history.
func at(h []txlog.Entry, seq int) txlog.Pos {
	if seq == 0 {
		return txlog.Pos{}
	}
	return h[seq-1].Pos()
}

// errCrash is what everything says after the power went.
var errCrash = errors.New("power cut")

// disk is what survives a crash of the node under test: its log, its store and
// the snapshots it fetched.
type disk struct {
	t *testing.T

	mu      sync.Mutex
	changed chan struct{} // closed at each change

	logID   txlog.DatasetID
	begun   bool
	base    txlog.Pos
	entries []txlog.Entry

	storeID  txlog.DatasetID
	storePos txlog.Pos
	fetched  map[chunker.InfoHash]bool
	held     []Held

	// faults
	steps      int // durable changes made so far
	crashAt    int // the step at which the power goes; 0: never
	crashAfter bool
	onCrash    func()
	crashed    bool
	full       map[string]bool
	room       int // entries that the store takes of a batch before the disk is full; 0: all
	broken     map[string]error

	reason     error // of the quarantine; nil: none
	imposed    chan struct{}
	tried      []string
	damaged    bool // the copy takes no entries
	installing time.Duration

	backAllowed bool // the position may go back: a declared rebuild
	activations int
}

func newDisk(t *testing.T) *disk {
	return &disk{t: t, changed: make(chan struct{}), imposed: make(chan struct{}), fetched: map[chunker.InfoHash]bool{}, full: map[string]bool{}, broken: map[string]error{}}
}

func (d *disk) notifyLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// step makes one durable change, unless the disk is at fault. The power may go
// just before it or just after.
func (d *disk) step(op string, change func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return errCrash
	}
	if d.full[op] {
		return fmt.Errorf("%s: %w", op, errNoSpace)
	}
	if err := d.broken[op]; err != nil {
		return err
	}
	d.steps++
	if d.steps == d.crashAt && !d.crashAfter {
		return d.crashLocked()
	}
	if err := change(); err != nil {
		return err
	}
	if d.steps == d.crashAt {
		return d.crashLocked()
	}
	d.notifyLocked()
	return nil
}

func (d *disk) crashLocked() error {
	d.crashed = true
	d.notifyLocked()
	if d.onCrash != nil {
		d.onCrash()
	}
	return errCrash
}

// reboot makes the disk usable again.
func (d *disk) reboot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashed, d.crashAt = false, 0
}

func (d *disk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	d.notifyLocked()
}

func (d *disk) position() txlog.Pos {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.storePos
}

// moveLocked changes what is served.
func (d *disk) moveLocked(id txlog.DatasetID, pos txlog.Pos) {
	if pos.Seq < d.storePos.Seq && !d.backAllowed {
		d.t.Errorf("the store went back from %d to %d", d.storePos.Seq, pos.Seq)
	}
	d.storeID, d.storePos = id, pos
}

// fakeLog is a disk's log.
type fakeLog struct{ *disk }

func (l fakeLog) Dataset() txlog.DatasetID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.logID
}

func (l fakeLog) headLocked() txlog.Pos {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Pos()
	}
	return l.base
}

func (l fakeLog) Head() txlog.Pos {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.headLocked()
}

func (l fakeLog) HeadTime() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Time
	}
	return time.Time{}
}

func (l fakeLog) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun {
		return 0
	}
	return l.base.Seq + 1
}

func (l fakeLog) AppendEntries(entries []txlog.Entry) (txlog.Pos, error) {
	err := l.step("append", func() error {
		head := l.headLocked()
		if !l.begun {
			return txlog.ErrEmpty
		}
		for _, e := range entries {
			if e.Prev != head.Hash || e.Seq != head.Seq+1 {
				return &txlog.DivergedError{Seq: head.Seq, Have: head.Hash, Want: e.Prev}
			}
			head = e.Pos()
		}
		l.entries = append(l.entries[:len(l.entries):len(l.entries)], entries...)
		return nil
	})
	return l.Head(), err
}

func (l fakeLog) Reset(id txlog.DatasetID, base txlog.Pos) error {
	return l.step("reset", func() error {
		if id.IsZero() {
			return errors.New("reset: no dataset")
		}
		l.logID, l.begun, l.base, l.entries = id, true, base, nil
		return nil
	})
}

func (l fakeLog) Read(pos txlog.Pos) (Entries, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &fakeEntries{l, pos}, l.checkLocked(pos)
}

func (l fakeLog) checkLocked(pos txlog.Pos) error {
	head := l.headLocked()
	switch {
	case !l.begun:
		return txlog.ErrEmpty
	case pos.Seq < l.base.Seq:
		return &txlog.TrimmedError{Asked: pos.Seq, First: l.base.Seq + 1}
	case pos.Seq > head.Seq:
		return &txlog.DivergedError{Seq: pos.Seq, Want: pos.Hash}
	}
	have := l.base
	if pos.Seq > l.base.Seq {
		have = l.entries[pos.Seq-l.base.Seq-1].Pos()
	}
	if have != pos {
		return &txlog.DivergedError{Seq: pos.Seq, Have: have.Hash, Want: pos.Hash}
	}
	return nil
}

type fakeEntries struct {
	l   fakeLog
	pos txlog.Pos
}

func (e *fakeEntries) Next(ctx context.Context, maxBytes int) ([]txlog.Entry, error) {
	for {
		e.l.mu.Lock()
		changed, err := e.l.changed, e.l.checkLocked(e.pos)
		var rest []txlog.Entry
		if err == nil {
			rest = e.l.entries[e.pos.Seq-e.l.base.Seq:]
		}
		if e.l.crashed {
			err = errCrash
		} else if e.l.broken["read"] != nil {
			err = e.l.broken["read"]
		}
		e.l.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if len(rest) > 0 {
			rest = cut(rest, maxBytes)
			e.pos = rest[len(rest)-1].Pos()
			return rest, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (e *fakeEntries) Close() error { return nil }

// cut takes some entries: few, so that catching up takes several steps.
func cut(entries []txlog.Entry, maxBytes int) []txlog.Entry {
	n := 0
	for i := range entries {
		n += len(entries[i].Frame())
		if i > 0 && n > maxBytes || i == 64 {
			return entries[:i]
		}
	}
	return entries
}

// fakeStore is a disk's store.
type fakeStore struct{ *disk }

func (s fakeStore) Position() (txlog.DatasetID, txlog.Pos) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.storeID, s.storePos
}

func (s fakeStore) Apply(entries []txlog.Entry) error {
	return s.step("apply", func() error {
		if s.damaged {
			return fmt.Errorf("page 7: %w", ErrDamaged)
		}
		fit := entries
		if s.room > 0 && len(entries) > s.room {
			fit = entries[:s.room]
		}
		id, pos, err := applyTo(s.storeID, s.storePos, fit)
		if err == nil && len(fit) > 0 {
			s.moveLocked(id, pos)
		}
		if err == nil && len(fit) < len(entries) {
			err = errNoSpace
		}
		return err
	})
}

func applyTo(id txlog.DatasetID, pos txlog.Pos, entries []txlog.Entry) (txlog.DatasetID, txlog.Pos, error) {
	for _, e := range entries {
		if e.Seq != pos.Seq+1 || e.Prev != pos.Hash {
			return id, pos, &txlog.DivergedError{Seq: pos.Seq, Have: pos.Hash, Want: e.Prev}
		}
		if e.Seq == 1 {
			id = txlog.DatasetID(e.Ops[0].Value)
		}
		pos = e.Pos()
	}
	return id, pos, nil
}

func (s fakeStore) Install(ctx context.Context, file string) (Generation, error) {
	var id, pos string
	if _, err := fmt.Sscanf(file, "snapshot:%32s:%s", &id, &pos); err != nil {
		return nil, fmt.Errorf("install %q: %w", file, err)
	}
	g := &fakeGeneration{disk: s.disk}
	if err := sleep(ctx, s.installing, nil); err != nil {
		return nil, err
	}
	var err error
	if g.id, err = txlog.ParseDatasetID(id); err != nil {
		return nil, err
	}
	if g.pos, err = txlog.ParsePos(pos); err != nil {
		return nil, err
	}
	return g, s.step("install", func() error { return nil })
}

// fakeGeneration is gone after a crash.
type fakeGeneration struct {
	*disk
	id  txlog.DatasetID
	pos txlog.Pos
}

func (g *fakeGeneration) Position() (txlog.DatasetID, txlog.Pos) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.id, g.pos
}

func (g *fakeGeneration) Apply(entries []txlog.Entry) error {
	return g.step("apply", func() (err error) {
		g.id, g.pos, err = applyTo(g.id, g.pos, entries)
		return err
	})
}

func (g *fakeGeneration) Activate() error {
	return g.step("activate", func() error {
		g.moveLocked(g.id, g.pos)
		g.damaged = false
		g.activations++
		return nil
	})
}

func (g *fakeGeneration) Discard() error { return nil }

// fakeQuarantine is a disk's quarantine.
type fakeQuarantine struct{ *disk }

func (q fakeQuarantine) Reason() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reason
}

func (q fakeQuarantine) Imposed() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.imposed
}

func (q fakeQuarantine) Impose(reason error) {
	_ = q.step("impose", func() error {
		if q.reason == nil {
			q.reason = reason
			close(q.imposed)
		}
		return nil
	})
}

func (q fakeQuarantine) Tried(by Rung, err error) {
	_ = q.step("tried", func() error {
		if by == "" {
			return nil // what it is asked here is always about the current copy
		}
		if q.tried = append(q.tried, fmt.Sprintf("%s %t", by, err == nil)); err == nil {
			q.reason, q.imposed = nil, make(chan struct{})
		}
		return nil
	})
}

// node is another member of the fleet.
type node struct {
	Upstream
	log    []txlog.Entry
	offers []int // seqs of snapshots it seeds
	wrong  int   // a seq whose snapshot of its has another infohash

	gone        bool // not in gossip, does not answer
	unreachable bool // in gossip, does not answer
	hang        bool // does not even refuse
	silent      bool // streams, and then says nothing
	frozen      bool // streams heartbeats only
	garbage     bool // streams entries of another history
	liar        bool // says that we diverged
	boast       uint64
	quiet       bool // gossip of its head does not arrive

	refusal error // what package heads says when it is asked
	breaks  error // what package heads says of its stream, after what it has
}

// world is the fleet and the network around the node under test.
type world struct {
	t *testing.T

	mu       sync.Mutex
	changed  chan struct{}
	nodes    []*node
	attempts int
	fetches  int
	fetchErr func(o Offer, n int) error // of the n-th fetch
	fetching time.Duration              // how long a fetch takes
	salvages bool
	disk     *disk
	signed   *fakeHeads // nil: nothing is signed
}

// fakeHeads are what package heads knows.
type fakeHeads struct {
	mu     sync.Mutex
	pos    txlog.Pos
	time   time.Time
	why    error
	halted chan struct{}
}

func newFakeHeads() *fakeHeads { return &fakeHeads{halted: make(chan struct{})} }

func (h *fakeHeads) sign(pos txlog.Pos, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pos, h.time = pos, at
}

func (h *fakeHeads) stop(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.why == nil {
		h.why = why
		close(h.halted)
	}
}

func (h *fakeHeads) Furthest() (txlog.Pos, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pos, h.time
}

func (h *fakeHeads) Halt() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.why
}

func (h *fakeHeads) Halted() <-chan struct{} { return h.halted }

func newWorld(t *testing.T) *world {
	return &world{t: t, changed: make(chan struct{}), disk: newDisk(t), fetching: 10 * time.Second}
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.changed)
	w.changed = make(chan struct{})
}

// add adds a node that streams a history from entry `first` on.
func (w *world) add(name string, log []txlog.Entry, first int) *node {
	n := &node{log: log, Upstream: Upstream{Name: name, Addr: name, First: uint64(first), Near: true}}
	if len(log) > 0 {
		n.Dataset = txlog.DatasetID(log[0].Ops[0].Value)
	}
	w.change(func() { w.nodes = append(w.nodes, n) })
	return n
}

func (w *world) addWriter(name string, log []txlog.Entry, first int) *node {
	n := w.add(name, log, first)
	w.change(func() { n.Writer, n.Manager = true, true })
	return n
}

func (n *node) head() txlog.Pos { return at(n.log, len(n.log)) }

func (w *world) Upstreams() []Upstream {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Upstream
	for _, n := range w.nodes {
		if n.gone {
			continue
		}
		u := n.Upstream
		if !n.quiet {
			u.Head = n.head()
			if len(n.log) > 0 {
				u.HeadTime = n.log[len(n.log)-1].Time
			}
		}
		u.Head.Seq += n.boast
		all = append(all, u)
	}
	return all
}

func infoHash(pos txlog.Pos, wrong bool) (h chunker.InfoHash) {
	copy(h[:], pos.Hash[:])
	if wrong {
		h[0]++
	}
	return h
}

func (w *world) Offers() []Offer {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Offer
	for _, n := range w.nodes {
		if n.gone {
			continue
		}
		for _, seq := range n.offers {
			pos := at(n.log, seq)
			o := Offer{Dataset: n.Dataset, Pos: pos, InfoHash: infoHash(pos, seq == n.wrong), Size: 1000, Holders: []Holder{{Name: n.Name, Addr: n.Addr}}, Manager: n.Manager}
			if i := slices.IndexFunc(all, func(other Offer) bool { return other.InfoHash == o.InfoHash }); i >= 0 {
				all[i].Holders = append(all[i].Holders, Holder{Name: n.Name, Addr: n.Addr})
				all[i].Manager = all[i].Manager || n.Manager
				continue
			}
			all = append(all, o)
		}
	}
	return all
}

func (w *world) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *world) Stream(ctx context.Context, u Upstream, id txlog.DatasetID, after txlog.Pos) (Stream, error) {
	w.mu.Lock()
	w.attempts++
	i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.Name == u.Name })
	n := w.nodes[i]
	hang := n.hang
	err := n.refuse(id, after)
	w.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	return &fakeStream{w: w, n: n, ctx: ctx, cancel: cancel, pos: after}, nil
}

// refuse says why n would not stream after a position.
func (n *node) refuse(id txlog.DatasetID, after txlog.Pos) error {
	switch {
	case n.gone || n.unreachable:
		return errors.New("connection refused")
	case n.refusal != nil:
		return n.refusal
	case id != n.Dataset:
		return errors.New("other dataset")
	case n.liar:
		return &txlog.DivergedError{Seq: after.Seq, Have: txlog.Hash{1}, Want: after.Hash}
	case n.First > after.Seq+1:
		return &txlog.TrimmedError{Asked: after.Seq, First: n.First}
	case after.Seq > uint64(len(n.log)):
		return &txlog.DivergedError{Seq: after.Seq, Want: after.Hash}
	case at(n.log, int(after.Seq)) != after:
		return &txlog.DivergedError{Seq: after.Seq, Have: at(n.log, int(after.Seq)).Hash, Want: after.Hash}
	}
	return nil
}

type fakeStream struct {
	w      *world
	n      *node
	ctx    context.Context
	cancel context.CancelFunc
	pos    txlog.Pos
	spoke  bool
}

func (s *fakeStream) Dataset() txlog.DatasetID { return s.n.Dataset }

func (s *fakeStream) Close() error {
	s.cancel()
	return nil
}

func (s *fakeStream) Next(maxBytes int) ([]txlog.Entry, txlog.Pos, time.Time, error) {
	beat := time.NewTimer(time.Second)
	defer beat.Stop()
	for {
		s.w.mu.Lock()
		changed, silent := s.w.changed, s.n.silent
		head := s.n.head()
		head.Seq += s.n.boast
		var headTime time.Time
		if len(s.n.log) > 0 {
			headTime = s.n.log[len(s.n.log)-1].Time
		}
		err := s.n.refuse(s.n.Dataset, s.pos)
		var rest []txlog.Entry
		if err == nil && !s.n.frozen && !s.n.garbage {
			rest = cut(s.n.log[s.pos.Seq:], maxBytes)
		}
		garbage, breaks := s.n.garbage, s.n.breaks
		s.w.mu.Unlock()
		switch {
		case s.ctx.Err() != nil:
			return nil, head, headTime, s.ctx.Err()
		case err != nil:
			return nil, head, headTime, io.ErrUnexpectedEOF
		case garbage && s.spoke:
			e, _ := txlog.Seal(txlog.Pos{Seq: s.pos.Seq, Hash: txlog.Hash{7}}, 1, writerClock, []txlog.Op{{Kind: txlog.Put, Key: []byte("k")}})
			return []txlog.Entry{e}, head, headTime, nil
		case silent:
			<-s.ctx.Done()
		case !s.spoke:
			s.spoke = true
			return nil, head, headTime, nil
		case len(rest) > 0:
			s.pos = rest[len(rest)-1].Pos()
			return rest, head, headTime, nil
		case breaks != nil:
			if _, fork := errors.AsType[*heads.ForkError](breaks); fork {
				s.w.signed.stop(breaks)
			}
			return nil, head, headTime, breaks
		}
		select {
		case <-s.ctx.Done():
		case <-changed:
		case <-beat.C:
			return nil, head, headTime, nil
		}
	}
}

func (w *world) Fetch(ctx context.Context, o Offer, progress func(done, total int64)) (string, error) {
	w.mu.Lock()
	w.fetches++
	err, takes := error(nil), w.fetching
	if w.fetchErr != nil {
		err = w.fetchErr(o, w.fetches)
	}
	w.mu.Unlock()
	d := w.disk
	d.mu.Lock()
	have := d.fetched[o.InfoHash]
	d.mu.Unlock()
	if !have {
		for i := range int64(10) {
			progress(i*o.Size/10, o.Size)
			if err := sleep(ctx, takes/10, nil); err != nil {
				return "", err
			}
			if err != nil && i == 5 {
				return "", err
			}
		}
		if err := d.step("fetch", func() error { d.fetched[o.InfoHash] = true; return nil }); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("snapshot:%v:%v", o.Dataset, o.Pos), nil
}

func (w *world) Held(ctx context.Context) ([]Held, error) {
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	return slices.Clone(w.disk.held), w.disk.broken["held"]
}

func (w *world) Salvage(ctx context.Context, o Offer) error {
	if !w.salvages {
		return errors.New("nothing to be salvaged")
	}
	return nil
}

// alarms collects what is logged at Error.
type alarms struct {
	slog.Handler
	mu   sync.Mutex
	list []string
	all  int
}

func (a *alarms) Enabled(context.Context, slog.Level) bool { return true }

func (a *alarms) Handle(ctx context.Context, r slog.Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Level > slog.LevelDebug {
		a.all++
	}
	if r.Level >= slog.LevelError {
		a.list = append(a.list, r.Message)
	}
	return nil
}

func (a *alarms) count(part string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.list {
		if strings.Contains(m, part) {
			n++
		}
	}
	return n
}
