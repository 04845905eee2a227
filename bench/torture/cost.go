package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// cost is what one damage may cost the others, and did.
type cost struct {
	node     *node
	damage   *damage
	received int64             // by the process that is damaged, of snapshots
	offered  map[uint64]string // snapshots, before: what lacks signatures is not mended, and mends nothing

	file  string // that is damaged
	was   []byte
	bad   int  // pieces of it
	known bool // what follows can be told
}

// newCost looks at a node that nothing is wrong with.
func newCost(ctx context.Context, n *node, d *damage) *cost {
	c := &cost{node: n, damage: d}
	switch d.part {
	case snapshotFile, storeFile:
		var mended float64
		var err error
		c.offered, err = n.snapshots(ctx)
		if err == nil && d.when == live { // another process begins at 0
			c.received, err = n.received(ctx)
			if err == nil && d.part == storeFile {
				mended, err = n.mendedStores(ctx)
			}
		}
		// What is damaged again and again within minutes is mended from elsewhere.
		c.known = err == nil && ctx.Err() == nil && mended < 2
	}
	return c
}

// mendedStores returns how often a node's present process mended its store.
func (n *node) mendedStores(ctx context.Context) (sum float64, err error) {
	all, err := n.metrics(ctx)
	for name, v := range all {
		if strings.HasPrefix(name, `qs_repairs_total{kind="store_`) && strings.Contains(name, `result="ok"`) {
			sum += v
		}
	}
	return sum, err
}

// received returns how many bytes of snapshots a node's present process got from others,
// in good pieces, bad ones and twice.
func (n *node) received(ctx context.Context) (int64, error) {
	all, err := n.metrics(ctx)
	if err != nil {
		return 0, err
	}
	sum := all["qs_swarm_wasted_bytes_total"]
	for name, v := range all {
		if strings.HasPrefix(name, "qs_swarm_received_bytes_total{") {
			sum += v
		}
	}
	return int64(sum), nil
}

// before remembers the file that is about to be damaged.
func (c *cost) before(file string) {
	if c.known && c.damage.part == snapshotFile {
		c.file = file
		was, err := os.ReadFile(file)
		c.was, c.known = was, err == nil && c.offers(file)
	}
}

// offers reports whether the node offered the snapshot that a file belongs to.
func (c *cost) offers(file string) bool {
	for seq := range c.offered {
		if strings.HasPrefix(filepath.Base(file), fmt.Sprintf("snapshot-%020d-", seq)) {
			return true
		}
	}
	return false
}

// after counts the pieces that the damage made bad.
func (c *cost) after() {
	if !c.known || c.damage.part != snapshotFile {
		return
	}
	is, err := os.ReadFile(c.file)
	c.known = err == nil
	c.bad = badPieces(c.was, is)
}

// badPieces counts the pieces of a snapshot's file that are no longer what they were.
// What was appended to it is in none.
func badPieces(was, is []byte) (n int) {
	size := int(chunker.PieceLength(int64(len(was))))
	for at := 0; at < len(was); at += size {
		end := min(at+size, len(was))
		if end > len(is) || !bytes.Equal(was[at:end], is[at:end]) {
			n++
		}
	}
	return n
}

// check waits until a damaged snapshot is whole again, or given up for a newer one, and
// compares what was fetched meanwhile with what may be: of k bad pieces of a snapshot
// k + 1, and nothing for a store beside which there is a snapshot.
func (c *cost) check(ctx context.Context) error {
	switch {
	case !c.known || !c.node.alive():
		return nil
	case c.damage.part == storeFile:
		if len(c.offered) == 0 {
			return nil
		}
		got, err := c.node.received(ctx)
		if err != nil {
			return nil // whatever it is, it is found when the fleet comes to rest
		}
		if got -= c.received; got > 0 {
			c.violate("%d bytes of snapshots were fetched to repair a store beside a snapshot", got)
		}
		c.node.rig.figures.add("stores beside a snapshot that were damaged", 1)
		return nil
	case c.file == "" || c.was == nil:
		return nil
	}
	whole := false
	part := strings.TrimSuffix(c.file, filepath.Ext(c.file)) + ".part"
	err := fleet.Until(ctx, mendLimit, func() error {
		is, err := os.ReadFile(c.file)
		if whole = err == nil && bytes.Equal(is, c.was); whole {
			return nil
		}
		if _, gone := os.Stat(part); errors.Is(err, os.ErrNotExist) && errors.Is(gone, os.ErrNotExist) {
			return nil // given up
		}
		return fmt.Errorf("%s is not whole again", filepath.Base(c.file))
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		c.node.rig.violate(Violation{NoRest, c.node.name, time.Now(), fmt.Sprintf("after %v: %v", c.damage, err)})
		return nil
	}
	if !whole {
		c.node.rig.figures.add("damaged snapshots given up for newer ones", 1)
		return nil
	}
	got, err := c.node.received(ctx)
	if err != nil {
		return nil
	}
	got -= c.received
	size := chunker.PieceLength(int64(len(c.was)))
	if most := int64(c.bad+1) * size; got > most {
		c.violate("%d bytes were fetched for %d bad pieces of %d bytes", got, c.bad, size)
	}
	c.node.rig.figures.add("snapshots mended", 1)
	c.node.rig.figures.add("snapshots mended, bad pieces", c.bad)
	c.node.rig.figures.add("snapshots mended, bytes fetched", int(got))
	c.node.rig.figures.most("most pieces fetched beyond the bad ones", float64((got+size-1)/size-int64(c.bad)))
	return nil
}

func (c *cost) violate(format string, args ...any) {
	c.node.rig.violate(Violation{Costly, c.node.name, time.Now(), fmt.Sprintf(format, args...) + fmt.Sprintf(", after %v", c.damage)})
}
