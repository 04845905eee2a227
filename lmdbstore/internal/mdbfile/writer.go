package mdbfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// writeBuffer is what is handed to the underlying writer at once.
const writeBuffer = 1 << 20

// mapUnit is what the recorded map size is a multiple of. It follows from the
// data alone: another node's configuration must not show in the bytes.
const mapUnit = 1 << 20

// Writer writes a planned file, front to back, without seeking. It must be fed
// the databases and pairs that the plan was made from. Pairs that lead to
// another layout are an error, at Close at the latest, but the order of the
// keys is not checked again. After an error it only returns that error.
//
// Pages are numbered in the order in which mdb_copy -c visits them: a page
// comes after its children, and overflow pages before the leaf they belong to.
type Writer struct {
	out  *bufio.Writer
	plan *Plan
	dbs  int    // begun
	next uint64 // page
	tree writeTree
	main pageBuf
	err  error
}

// writeTree is the tree being written: its current page at each level, leaves
// first.
type writeTree struct {
	plan     *treePlan
	stat     Stat
	root     uint64
	levels   []pageBuf
	children []uint64 // begun at each level
}

// errOffPlan means that a Writer was fed other pairs than the Planner.
var errOffPlan = errors.New("pairs are not those that were planned")

// NewWriter returns a Writer that writes exactly plan.Size() bytes to w, in
// large chunks.
func NewWriter(w io.Writer, plan *Plan) *Writer {
	wr := &Writer{
		out:  bufio.NewWriterSize(w, writeBuffer),
		plan: plan,
		next: firstPage,
	}
	wr.main.reset()
	wr.writeMetas()
	return wr
}

// writeMetas writes the two meta pages: 0 as in a new environment, 1 as after
// its only transaction.
func (w *Writer) writeMetas() {
	size := uint64(w.plan.Size())
	m := meta{
		mapSize:  (size + mapUnit - 1) / mapUnit * mapUnit,
		free:     record{pad: pageSize, flags: envIntegerKey, root: invalidPage},
		main:     record{root: invalidPage},
		lastPage: metaPages - 1,
	}
	var b [metaPages * pageSize]byte
	m.put(b[:pageSize], 0)
	m.lastPage = w.plan.pages - 1
	m.main = record{
		Stat: Stat{Depth: 1, LeafPages: 1, Entries: uint64(len(w.plan.dbs))},
		root: m.lastPage,
	}
	m.txnid = 1
	m.put(b[pageSize:], 1)
	w.write(b[:])
}

// DB begins the next database.
func (w *Writer) DB(name string) error {
	w.endDB()
	if w.err != nil {
		return w.err
	}
	if w.dbs == len(w.plan.dbs) || w.plan.dbs[w.dbs].name != name {
		return w.fail(fmt.Errorf("database %q: %w", name, errOffPlan))
	}
	plan := &w.plan.dbs[w.dbs]
	w.dbs++
	w.tree = writeTree{
		plan:     plan,
		root:     invalidPage,
		levels:   make([]pageBuf, plan.Depth),
		children: make([]uint64, plan.Depth),
	}
	for i := range w.tree.levels {
		w.tree.levels[i].reset()
	}
	return nil
}

// Add adds the next pair of the current database. Key and value are not kept.
func (w *Writer) Add(key, value []byte) error {
	if w.err != nil {
		return w.err
	}
	t := &w.tree
	if len(t.levels) == 0 {
		return w.fail(fmt.Errorf("pair before the first database or in an empty one: %w", errOffPlan))
	}
	leaf := &t.levels[0]
	cost, overflow := leafCost(len(key), len(value))
	if leaf.lower+cost > leaf.upper {
		w.closePage(0)
	}
	if leaf.empty() {
		w.addChild(1, key)
	}
	if w.err != nil {
		return w.err
	}
	t.stat.Entries++
	if overflow == 0 {
		leaf.add(leafHead(len(key), len(value), 0), key, value)
		return nil
	}
	var pgno [pgnoSize]byte
	le.PutUint64(pgno[:], w.next)
	leaf.add(leafHead(len(key), len(value), nodeBig), key, pgno[:])
	t.stat.OverflowPages += overflow
	w.writeOverflow(overflow, value)
	return w.err
}

// addChild adds a page that begins with key, and that has no number yet, to
// the branch page at level. Planner's addChild is its twin.
func (w *Writer) addChild(level int, key []byte) {
	t := &w.tree
	if level == len(t.levels) {
		return // the new page is the root
	}
	b := &t.levels[level]
	if !b.empty() && (b.lower+branchCost(len(key)) > b.upper || t.children[level] == t.plan.breakBefore[level]) {
		w.closePage(level)
	}
	if b.empty() {
		w.addChild(level+1, key)
		key = nil
	}
	b.add(branchHead(len(key), 0), key, nil)
	t.children[level]++
}

// closePage numbers and writes the current page at level, and tells the level
// above.
func (w *Writer) closePage(level int) {
	t := &w.tree
	flags := uint16(flagBranch)
	if level == 0 {
		flags = flagLeaf
		t.stat.LeafPages++
	} else {
		t.stat.BranchPages++
	}
	pgno := w.take(1)
	w.write(t.levels[level].finish(pgno, flags))
	t.levels[level].reset()
	if level+1 < len(t.levels) {
		t.levels[level+1].setLastChild(pgno)
	} else if t.root != invalidPage {
		w.fail(errOffPlan) // a second root: there are more pairs than planned
	} else {
		t.root = pgno
	}
}

func (w *Writer) writeOverflow(pages uint64, value []byte) {
	var header [headerSize]byte
	putHeader(header[:], w.take(pages), flagOverflow)
	le.PutUint32(header[12:], uint32(pages))
	w.write(header[:])
	w.write(value)
	w.write(zeroPage[:int(pages)*pageSize-headerSize-len(value)])
}

var zeroPage [pageSize]byte

// endDB completes the current database, if any, and adds its record to the
// main database.
func (w *Writer) endDB() {
	t := &w.tree
	if w.err != nil || t.plan == nil {
		return
	}
	for level := range t.levels {
		w.closePage(level)
	}
	t.stat.Depth = t.plan.Depth
	if w.err == nil && t.stat != t.plan.Stat {
		w.fail(fmt.Errorf("database %q: %w", t.plan.name, errOffPlan))
	}
	var rec [recordSize]byte
	r := record{Stat: t.stat, root: t.root}
	r.put(rec[:])
	w.main.add(leafHead(len(t.plan.name), recordSize, nodeSub), []byte(t.plan.name), rec[:])
	w.tree = writeTree{}
}

// Close ends the pass and writes what is buffered. It does not close the
// underlying writer.
func (w *Writer) Close() error {
	w.endDB()
	if w.err == nil && w.dbs < len(w.plan.dbs) {
		w.fail(fmt.Errorf("database %q is missing: %w", w.plan.dbs[w.dbs].name, errOffPlan))
	}
	if w.err != nil {
		return w.err
	}
	w.write(w.main.finish(w.take(1), flagLeaf))
	if w.err == nil {
		if err := w.out.Flush(); err != nil {
			w.fail(err)
		}
	}
	err := w.err
	if err == nil {
		w.fail(errors.New("writer was closed"))
	}
	return err
}

// take returns the number of the next page and moves on by n pages.
func (w *Writer) take(n uint64) uint64 {
	pgno := w.next
	w.next += n
	if w.next > w.plan.pages && w.err == nil {
		w.fail(errOffPlan)
	}
	return pgno
}

// write writes to the buffer, unless there was an error before.
func (w *Writer) write(b []byte) {
	if w.err == nil {
		if _, err := w.out.Write(b); err != nil {
			w.fail(err)
		}
	}
}

func (w *Writer) fail(err error) error {
	w.err = fmt.Errorf("write environment: %w", err)
	return w.err
}

// pageBuf is a leaf or branch page under construction.
type pageBuf struct {
	lower, upper int
	b            [pageSize]byte
}

func (p *pageBuf) reset() { p.lower, p.upper = headerSize, pageSize }

func (p *pageBuf) empty() bool { return p.lower == headerSize }

// add adds a node, for which there must be room.
func (p *pageBuf) add(head uint64, key, data []byte) {
	p.upper -= even(nodeHeader + len(key) + len(data))
	le.PutUint16(p.b[p.lower:], uint16(p.upper))
	p.lower += offsetSize
	node := p.b[p.upper:]
	le.PutUint64(node, head)
	n := nodeHeader + copy(node[nodeHeader:], key)
	n += copy(node[n:], data)
	if n&1 != 0 {
		node[n] = 0
	}
}

// setLastChild sets the page number of the node added last.
func (p *pageBuf) setLastChild(pgno uint64) {
	node := p.b[p.upper:]
	le.PutUint64(node, le.Uint64(node)|pgno)
}

// finish returns the page's bytes, which are valid until it is used again.
func (p *pageBuf) finish(pgno uint64, flags uint16) []byte {
	putHeader(p.b[:], pgno, flags)
	le.PutUint16(p.b[12:], uint16(p.lower))
	le.PutUint16(p.b[14:], uint16(p.upper))
	clear(p.b[p.lower:p.upper])
	return p.b[:]
}
