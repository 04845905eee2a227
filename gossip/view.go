package gossip

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Orphans are records of processes that memberlist does not know (yet): a
// broadcast may overtake the news that its node joined. They are bounded. Signed
// ones come before their members, all those of a fleet at a time, and are bounded
// by how many certificates there are.
const (
	maxOrphans       = 1024
	maxSignedOrphans = 16 << 10
	orphansPerName   = 4
	orphanMaxAge     = time.Minute
)

// view is what this node knows: who is a member and what each said of itself.
// It has no goroutines and sends nothing.
type view struct {
	forgetAfter time.Duration
	notary      *notary // nil: records are not signed

	mu      sync.Mutex         // guards what follows
	self    record             // this node's own, as last encoded
	members map[string]*member // by name, this node included
	records map[key]*heard
	changed chan struct{}
	listed  []Member // what list returned last; nil: something changed since
}

// member is a node as memberlist reports it.
type member struct {
	key
	dead  bool
	since time.Time // when dead last changed
}

// heard is a record with the time that it last brought news.
type heard struct {
	record
	at time.Time
}

func newView(forgetAfter time.Duration, n *notary) *view {
	return &view{
		forgetAfter: forgetAfter,
		notary:      n,
		members:     make(map[string]*member),
		records:     make(map[key]*heard),
		changed:     make(chan struct{}),
	}
}

// touch tells those who wait for a change.
func (v *view) touch() {
	v.listed = nil
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *view) wait() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// update makes change to this node's own facts. It reports whether there was
// any; an error means that nothing was changed.
func (v *view) update(change func(*Facts), leaving bool) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.self
	r.facts.Snapshots = slices.Clone(r.facts.Snapshots)
	change(&r.facts)
	r.facts.Name, r.facts.Role = v.self.facts.Name, v.self.facts.Role
	if v.notary != nil {
		r.facts.Colo = v.self.facts.Colo
	}
	slices.SortStableFunc(r.facts.Snapshots, func(a, b Announcement) int {
		return cmp.Compare(b.Pos.Seq, a.Pos.Seq)
	})
	r.facts.Snapshots = slices.Clone(r.facts.Snapshots[:min(len(r.facts.Snapshots), MaxSnapshots)])
	r.leaving = r.leaving || leaving
	if err := r.encode(); err != nil {
		return false, err
	}
	if bytes.Equal(r.raw, v.self.raw) {
		return false, nil
	}
	r.counter++
	if err := r.encode(); err != nil {
		return false, err
	}
	v.self = r
	v.touch()
	return true, nil
}

// settle gives this node's record the address that memberlist advertises.
func (v *view) settle(addr string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.self.addr = addr
	v.encodeSelf()
}

// encodeSelf encodes the own record after a change of its version or address,
// which cannot pass a limit.
func (v *view) encodeSelf() {
	v.listed = nil
	if err := v.self.encode(); err != nil {
		panic("gossip: own record: " + err.Error())
	}
}

// own returns this node's record as it is here.
func (v *view) own() record {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.self
}

// joined notes that k is alive.
func (v *view) joined(k key, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.members[k.name]; m != nil && m.key != k {
		v.drop(m) // the name moved to another address
	}
	v.members[k.name] = &member{key: k, since: now}
	v.touch()
}

// died notes that k stopped answering, or left.
func (v *view) died(k key, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.members[k.name]; m != nil && m.key == k && !m.dead {
		m.dead, m.since = true, now
		v.touch()
	}
}

// drop forgets a member and its facts.
func (v *view) drop(m *member) {
	delete(v.members, m.name)
	delete(v.records, m.key)
}

// verdict says what became of a record that was heard.
type verdict int

const (
	applied  verdict = iota // it was news
	stale                   // known already, or older
	reborn                  // it is about this node, and newer than what this node says
	overflow                // an orphan too many
)

// known reports whether r is no news.
func (v *view) known(r record) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.knows(r)
}

func (v *view) knows(r record) bool {
	if r.key == v.self.key {
		return r.version.less(v.self.version) || v.self.version == r.version && bytes.Equal(v.self.raw, r.raw)
	}
	old := v.records[r.key]
	return old != nil && !old.version.less(r.version)
}

// hear takes a record that arrived.
func (v *view) hear(r record, now time.Time) verdict {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.knows(r) {
		return stale
	}
	if r.key == v.self.key {
		// The version of an earlier life of this node, whose clock was ahead.
		v.self.version = version{incarnation: min(r.incarnation, maxIncarnation-1) + 1}
		v.encodeSelf()
		return reborn
	}
	m := v.members[r.name]
	known := m != nil && m.key == r.key
	if v.records[r.key] == nil && !known && !v.roomFor(r.key) {
		return overflow
	}
	v.records[r.key] = &heard{record: r, at: now}
	if known {
		v.touch()
	}
	return applied
}

// roomFor makes room for one more orphan, at the expense of one of the same name if
// that has too many already.
func (v *view) roomFor(k key) bool {
	limit := maxOrphans
	if v.notary != nil {
		limit = maxSignedOrphans
		namesakes := make([]key, 0, orphansPerName)
		for other := range v.records {
			if other.name == k.name && (v.members[k.name] == nil || v.members[k.name].key != other) {
				namesakes = append(namesakes, other)
			}
		}
		if len(namesakes) >= orphansPerName {
			delete(v.records, slices.MinFunc(namesakes, func(a, b key) int {
				return v.records[a].at.Compare(v.records[b].at)
			}))
		}
	}
	return len(v.records) < len(v.members)+limit
}

// forget drops members that are dead for too long, and old orphans.
func (v *view) forget(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.members {
		if m.dead && now.Sub(m.since) >= v.forgetAfter {
			v.drop(m)
			v.touch()
		}
	}
	for k, h := range v.records {
		if m := v.members[k.name]; (m == nil || m.key != k) && now.Sub(h.at) >= orphanMaxAge {
			delete(v.records, k)
		}
	}
}

// liveness tells a member that left from one that failed by its last record:
// memberlist knows the difference but does not tell.
func (v *view) liveness(m *member) Liveness {
	switch h := v.records[m.key]; {
	case !m.dead:
		return Alive
	case h != nil && h.leaving, m.key == v.self.key:
		return Left
	default:
		return Failed
	}
}

// younger reports whether this node started after the one called k, as far as
// their clocks tell. The other is taken for the first until it was heard.
func (v *view) younger(k key) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.records[k]
	return h == nil || h.version.less(v.self.version)
}

// list returns everybody, this node first, then by name. It is made once for each
// change, for all who ask.
func (v *view) list() []Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.listed != nil {
		return v.listed
	}
	all := make([]Member, 0, len(v.members))
	for _, m := range v.members {
		f, life := Facts{Name: m.name}, uint64(0)
		if m.key == v.self.key {
			f, life = v.self.facts, v.self.incarnation
		} else if h := v.records[m.key]; h != nil {
			f, life = h.facts, h.incarnation
		}
		f.Snapshots = slices.Clone(f.Snapshots)
		host, _, _ := net.SplitHostPort(m.addr)
		for _, addr := range []*string{&f.SwarmAddr, &f.PeerAddr, &f.HTTPAddr} {
			*addr = withHost(*addr, host)
		}
		all = append(all, Member{Facts: f, Liveness: v.liveness(m), Addr: m.addr, Since: m.since, Incarnation: life})
	}
	slices.SortFunc(all, func(a, b Member) int {
		if a.Name == v.self.name || b.Name == v.self.name {
			if a.Name == b.Name {
				return 0
			}
			if a.Name == v.self.name {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	v.listed = all
	return all
}

// withHost puts host into a host:port that names none, or an unspecified one.
func withHost(addr, host string) string {
	h, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(h); h == "" || ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort(host, port)
	}
	return addr
}

// alive returns how many members are alive, this node included.
func (v *view) alive() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for _, m := range v.members {
		if !m.dead {
			n++
		}
	}
	return n
}

// addrs returns the gossip addresses of the others by their liveness.
func (v *view) addrs() map[Liveness][]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	addrs := make(map[Liveness][]string)
	for _, m := range v.members {
		if m.key != v.self.key {
			l := v.liveness(m)
			addrs[l] = append(addrs[l], m.addr)
		}
	}
	return addrs
}

// The state that a push-pull exchanges: a version byte, then the records of all
// members, each after its length as u16, little-endian.
const stateVersion = 1

// state encodes this node's record and those of all members: with full, together
// with all that it takes to verify them.
func (v *view) state(full bool, now time.Time) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	b := []byte{stateVersion}
	add := func(r *record) { b = append16(b, r.wire(full || r.young(now))) }
	err := v.signSelf(now)
	if v.self.addr != "" && err == nil { // settled
		add(&v.self)
	}
	for _, m := range v.members {
		if h := v.records[m.key]; h != nil && !h.expired(now) {
			add(&h.record)
		}
	}
	return b, err
}

// splitState calls each with every record of a state, until there is an error.
func splitState(b []byte, each func(raw []byte) error) error {
	if len(b) == 0 {
		return errors.New("empty state")
	}
	if b[0] != stateVersion {
		return fmt.Errorf("state of version %d: this software knows %d", b[0], stateVersion)
	}
	for b = b[1:]; len(b) > 0; {
		if len(b) < 2 {
			return errors.New("state is cut short")
		}
		n := int(binary.LittleEndian.Uint16(b))
		if b = b[2:]; n > len(b) {
			return errors.New("state is cut short")
		}
		if err := each(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
