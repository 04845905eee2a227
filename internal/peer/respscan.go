package peer

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// keptCursors is how many of the cursors last handed out are understood.
	keptCursors = 4096
	// maxScanCount bounds the keys of one SCAN answer, and maxScanBytes their bytes: a
	// page may be shorter than was asked for.
	maxScanCount = 10_000
	maxScanBytes = 16 << 10
	// scanHead is room for what stands before them: the cursor, and how many they are.
	scanHead = 64
)

// cursors turns the keys at which scans go on into numbers, because clients
// take a cursor for an unsigned 64-bit integer, and may send the next SCAN over
// another connection. The keptCursors last ones are remembered, so memory is
// bounded, and a cursor may be used again while it is.
type cursors struct {
	mu   sync.Mutex // guards what follows
	next uint64     // never 0, which means the start
	ring [keptCursors]cursor
}

type cursor struct {
	id  uint64
	key []byte // the first key that was not looked at
}

// newCursors begins at random, so that a cursor of an earlier process is not
// taken for one of this.
func newCursors() *cursors {
	return &cursors{next: uint64(rand.Uint32())<<16 + 1}
}

func (c *cursors) put(key []byte) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.next
	c.next++
	c.ring[id%keptCursors] = cursor{id, key}
	return id
}

func (c *cursors) get(id uint64) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.ring[id%keptCursors]
	return e.key, e.id == id
}

// scan answers SCAN cursor [MATCH prefix*] [COUNT n]: at most n keys, in key
// order.
func (c *respConn) scan(args [][]byte) error {
	id, err := strconv.ParseUint(string(args[0]), 10, 64)
	if err != nil {
		return respErrorf("ERR invalid cursor")
	}
	match, count, err := scanOptions(args[1:])
	if err != nil {
		return err
	}
	rng := lmdbstore.Range{Prefix: match.prefix, KeysOnly: true}
	if id != 0 {
		start, ok := c.server.cursors.get(id)
		if !ok {
			return respErrorf("ERR cursor %d is not known here: it is of another node or too old; scan again from 0", id)
		}
		rng.Start = start
	}
	// Room for the longest page: where it ends is known at its end only. It is written where
	// it is sent from, so that this is all that it takes.
	room := int64(scanHead + min(count*(txlog.MaxKey+replyCost), maxScanBytes+txlog.MaxKey+replyCost))
	if err := c.lease.take(c.server.ctx, room); err != nil {
		return err
	}
	mark := len(c.out)
	c.out = slices.Grow(c.out, int(room))
	var more []byte
	keys := 0
	err = c.server.reads.view(func(tx *lmdbstore.Tx) error {
		return tx.Scan(rng, func(key, _ []byte) error {
			switch {
			case match.exact && len(key) > len(match.prefix):
				return lmdbstore.ErrStop // keys that follow are longer still, or other
			case keys == count, len(c.out)-mark > maxScanBytes:
				more = slices.Clone(key)
				return lmdbstore.ErrStop
			}
			c.out = respBulk(c.out, key)
			keys++
			return nil
		})
	})
	if err != nil {
		c.out = c.out[:mark]
		c.lease.give(room)
		return err
	}
	c.outHeld += room
	next := uint64(0)
	if more != nil {
		next = c.server.cursors.put(more)
	}
	head := respArray(make([]byte, 0, scanHead), 2)
	head = respBulk(head, strconv.FormatUint(next, 10))
	head = respArray(head, keys)
	c.out = slices.Insert(c.out, mark, head...)
	return nil
}

// keyMatch is a MATCH pattern: one key, or all that begin with prefix.
type keyMatch struct {
	prefix []byte
	exact  bool
}

func scanOptions(args [][]byte) (match keyMatch, count int, err error) {
	count = 10
	for ; len(args) > 0; args = args[2:] {
		name := strings.ToUpper(string(args[0]))
		if len(args) == 1 || (name != "MATCH" && name != "COUNT") {
			return match, 0, respErrorf("ERR syntax error: SCAN cursor [MATCH prefix*] [COUNT n]")
		}
		if name == "MATCH" {
			match, err = parsePattern(args[1])
		} else {
			count, err = parseCount(args[1])
			count = min(count, maxScanCount)
		}
		if err != nil {
			return match, 0, err
		}
	}
	return match, count, nil
}

// parsePattern reads a pattern that an ordered store answers without looking
// at every key. A backslash takes the next character literally.
func parsePattern(text []byte) (keyMatch, error) {
	m := keyMatch{prefix: []byte{}, exact: true}
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case b == '*' && i == len(text)-1:
			m.exact = false
		case bytes.IndexByte([]byte("*?["), b) >= 0:
			return m, respErrorf("ERR MATCH %.64q is not a prefix and one * at its end: other patterns are not supported", text)
		case b == '\\' && i+1 < len(text):
			i++
			m.prefix = append(m.prefix, text[i])
		default:
			m.prefix = append(m.prefix, b)
		}
	}
	return m, nil
}
