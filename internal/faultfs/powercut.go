package faultfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// sector is the unit in which unsynced writes reach the disk or not, in bytes.
// A cut tears at most one of them per write.
const sector = 512

// AfterPowerCut returns the file system as a power cut now might leave it, all
// of it durable and without faults. Other draws from rng leave it otherwise. f
// stays as it is.
func (f *FS) AfterPowerCut(rng *rand.Rand) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := cut{rng: rng, seen: map[*node]*node{}}
	return &FS{root: c.node(f.root), space: -1}
}

type cut struct {
	rng  *rand.Rand
	seen map[*node]*node // a node may be left with two names
}

func (c *cut) node(n *node) *node {
	if left := c.seen[n]; left != nil {
		return left
	}
	if n.names == nil {
		b := c.content(n)
		left := &node{content: b, synced: slices.Clone(b)}
		c.seen[n] = left
		return left
	}
	left := newDir()
	c.seen[n] = left
	names := maps.Clone(n.durable)
	keep := c.keeper(len(n.moves))
	for i, m := range n.moves {
		if keep(i) {
			m.apply(names)
		}
	}
	// In a fixed order, so that a seed leaves the same.
	for _, name := range slices.Sorted(maps.Keys(names)) {
		left.names[name] = c.node(names[name])
	}
	left.durable = maps.Clone(left.names)
	return left
}

// keeper draws which of n changes reached the disk: none, all, the first few,
// or any.
func (c *cut) keeper(n int) func(int) bool {
	switch c.rng.IntN(4) {
	case 0:
		return func(int) bool { return false }
	case 1:
		return func(int) bool { return true }
	case 2:
		first := c.rng.IntN(n + 1)
		return func(i int) bool { return i < first }
	default:
		return func(int) bool { return c.rng.IntN(2) == 0 }
	}
}

func (c *cut) content(n *node) []byte {
	b := slices.Clone(n.synced)
	keep := c.keeper(len(n.pending))
	longest := len(b)
	for i, ch := range n.pending {
		longest = max(longest, int(ch.off)+len(ch.data))
		switch {
		case ch.data == nil:
			if keep(i) {
				b = ch.apply(b)
				longest = len(b)
			}
		case keep(i):
			b = c.tear(b, ch)
		}
	}
	if len(n.pending) > 0 && c.rng.IntN(4) == 0 { // the length is there, the bytes are not
		b = change{off: int64(longest)}.apply(b)
	}
	return b
}

// tear applies the sectors of a write that reached the disk.
func (c *cut) tear(b []byte, ch change) []byte {
	first := ch.off / sector
	sectors := int((ch.off+int64(len(ch.data))-1)/sector - first + 1)
	keep, torn := c.keeper(sectors), -1
	if c.rng.IntN(2) == 0 {
		torn = c.rng.IntN(sectors)
	}
	for i := range sectors {
		if !keep(i) {
			continue
		}
		from := max(ch.off, (first+int64(i))*sector)
		to := min(ch.off+int64(len(ch.data)), (first+int64(i)+1)*sector)
		if i == torn {
			to = from + c.rng.Int64N(to-from+1)
		}
		if to > from {
			b = change{off: from, data: ch.data[from-ch.off : to-ch.off]}.apply(b)
		}
	}
	return b
}
