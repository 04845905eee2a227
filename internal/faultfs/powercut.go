package faultfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// sector is the unit in which unsynced writes reach the disk or not, in bytes.
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
	keep := keeper(c.rng, len(n.moves))
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

func (c *cut) content(n *node) []byte {
	return AfterCut(c.rng, n.synced, n.pending, true)
}

// AfterCut returns what a power cut may leave of a file that surely holds synced, and to
// which changes were made since that are not known to have reached the disk. Other draws
// from rng leave it otherwise. Sectors reach the disk wholly or not at all, unless torn
// says that one of each write may be cut in the middle.
func AfterCut(rng *rand.Rand, synced []byte, pending []Change, torn bool) []byte {
	b := slices.Clone(synced)
	keep := keeper(rng, len(pending))
	longest := len(b)
	for i, ch := range pending {
		longest = max(longest, int(ch.Off)+len(ch.Data))
		switch {
		case ch.Data == nil:
			if keep(i) {
				b = ch.Apply(b)
				longest = len(b)
			}
		case keep(i):
			b = tear(rng, b, ch, torn)
		}
	}
	if len(pending) > 0 && rng.IntN(4) == 0 { // the length is there, the bytes are not
		b = Change{Off: int64(longest)}.Apply(b)
	}
	return b
}

// keeper draws which of n changes reached the disk: none, all, the first few,
// or any.
func keeper(rng *rand.Rand, n int) func(int) bool {
	switch rng.IntN(4) {
	case 0:
		return func(int) bool { return false }
	case 1:
		return func(int) bool { return true }
	case 2:
		first := rng.IntN(n + 1)
		return func(i int) bool { return i < first }
	default:
		return func(int) bool { return rng.IntN(2) == 0 }
	}
}

// tear applies the sectors of a write that reached the disk.
func tear(rng *rand.Rand, b []byte, ch Change, mayTear bool) []byte {
	first := ch.Off / sector
	sectors := int((ch.Off+int64(len(ch.Data))-1)/sector - first + 1)
	keep, torn := keeper(rng, sectors), -1
	if mayTear && rng.IntN(2) == 0 {
		torn = rng.IntN(sectors)
	}
	for i := range sectors {
		if !keep(i) {
			continue
		}
		from := max(ch.Off, (first+int64(i))*sector)
		to := min(ch.Off+int64(len(ch.Data)), (first+int64(i)+1)*sector)
		if i == torn {
			to = from + rng.Int64N(to-from+1)
		}
		if to > from {
			b = Change{Off: from, Data: ch.Data[from-ch.Off : to-ch.Off]}.Apply(b)
		}
	}
	return b
}
