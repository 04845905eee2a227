package lmdbstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

// maxSalvage bounds what Salvage holds in memory, in bytes of keys and values: what
// changed since, and what was lost.
const maxSalvage = 256 << 20

// ErrTooFar means that a damaged environment and a snapshot have too little in common.
var ErrTooFar = errors.New("too much of the snapshot is not in the damaged environment")

// Salvaging says what Salvage makes of what.
type Salvaging struct {
	// File is the damaged environment, or its directory, to which nobody writes. It
	// is read and not mapped.
	File string
	// At is where it stands, for when it can not say so itself any more.
	At txlog.Pos
	// Want is the snapshot.
	Want SnapshotInfo
	// Log has the entries between the two. nil: what changed between them is not known.
	Log *txlog.Log
	// Published is the snapshot's file: what is read of it is what has to be known
	// of lost pairs so that those behind them come out in their places.
	Published io.ReaderAt
}

// Salvaged is what Salvage found.
type Salvaged struct {
	Lost    int   // ranges of keys that were taken from Published
	Unread  int64 // bytes of the pages that were no good
	Changed int   // keys that the log changed between the environment and the snapshot
	Pairs   int64 // laid out
	Size    int64 // of what was laid out, in bytes; the snapshot's if all went well
}

// Salvage lays a snapshot out as Mint does, from an environment in which some pages
// are damaged: front to back, to out. Where everything stands depends on what stands
// before, so for pages that can not be read it looks into Published, where they would
// be, and goes on behind them. What it writes is not verified: damage that does not
// show in a page's structure is in it, and the caller compares piece by piece.
//
// An environment from before the snapshot gets the changes that the log has. One from
// after it lacks what keys held that were changed since; those are looked up, too.
//
// It reads the environment twice. Errors of Published and out are passed on. ErrDamaged
// means that there is no beginning, ErrTooFar that it needs too much memory.
func Salvage(ctx context.Context, s Salvaging, out io.Writer) (Salvaged, error) {
	report, err := salvage(ctx, s, out)
	if err != nil {
		err = fmt.Errorf("salvage %s: %w", s.File, err)
	}
	return report, err
}

func salvage(ctx context.Context, s Salvaging, out io.Writer) (Salvaged, error) {
	path := s.File
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, dataFile)
	}
	f, size, err := openFile(path)
	if err != nil {
		return Salvaged{}, err
	}
	defer f.Close()
	file, err := mdbfile.OpenDamaged(f, size, dbKV)
	if err != nil {
		return Salvaged{}, err
	}
	state, format, err := stateOf(file)
	if err != nil { // where it stands is the caller's to know, and its format the usual one
		state, format = State{Pos: s.At}, Format
	}
	if state.Pos.IsZero() {
		return Salvaged{}, fmt.Errorf("%w: where it stands is not known", ErrDamaged)
	}
	changes, err := s.changes(ctx, state.Pos)
	if err != nil {
		return Salvaged{}, fmt.Errorf("find what changed between %s and %s: %w", state.Pos, s.Want.Pos, err)
	}
	v := &salvor{Salvaging: s, ctx: ctx, file: file, plain: format == 1, changes: changes, keys: slices.Sorted(maps.Keys(changes))}
	plan, err := v.plan()
	if err != nil {
		return v.report, err
	}
	want := s.Want.State
	if state.Pos == want.Pos {
		want.Digest = state.Digest // what the damage did to the pairs it did not do to this
	}
	v.report.Changed, v.report.Size = len(changes), plan.Size()
	return v.report, v.write(untilDone{ctx, out}, plan, want, state.Pos != want.Pos)
}

// change is what the log says of a key.
type change struct {
	known bool   // otherwise it was changed after the snapshot
	put   bool   // otherwise it was deleted
	value []byte // as the environment holds it
}

// changes returns what changed between the environment, at pos, and the snapshot.
func (s *Salvaging) changes(ctx context.Context, pos txlog.Pos) (map[string]change, error) {
	changes := make(map[string]change)
	if s.Log == nil {
		return changes, nil
	}
	from, to := pos, s.Want.Pos
	forward := from.Seq < to.Seq
	if !forward {
		from, to = to, from
	}
	if head := s.Log.Head(); to.Seq > head.Seq && from != to {
		return nil, fmt.Errorf("the log ends at %s", head)
	}
	held := 0
	err := entriesBetween(ctx, s.Log, from, to, func(e *txlog.Entry) error {
		for _, op := range e.Ops {
			switch {
			case op.Kind == txlog.Init:
				continue
			case !forward:
				changes[string(op.Key)] = change{}
			case op.Kind == txlog.Put:
				changes[string(op.Key)] = change{known: true, put: true, value: appendValue(nil, op.Key, op.Value)}
				held += len(op.Value)
			default:
				changes[string(op.Key)] = change{known: true}
			}
			if held += len(op.Key); held > maxSalvage {
				return fmt.Errorf("%w: more than %d bytes changed", ErrTooFar, maxSalvage)
			}
		}
		return nil
	})
	return changes, err
}

// entriesBetween calls each with the entries after from up to to.
func entriesBetween(ctx context.Context, log *txlog.Log, from, to txlog.Pos, each func(*txlog.Entry) error) error {
	if from == to {
		return nil
	}
	r, err := log.Reader(from)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		batch, err := r.Next(ctx, 4<<20)
		if err != nil {
			return err
		}
		for i := range batch {
			if err := each(&batch[i]); err != nil {
				return err
			}
			switch at := batch[i].Pos(); {
			case at == to:
				return nil
			case at.Seq >= to.Seq:
				return &txlog.DivergedError{Seq: to.Seq, Have: at.Hash, Want: to.Hash}
			}
		}
	}
}

// salvor goes through the environment and the changes together, in key order.
type salvor struct {
	Salvaging
	ctx     context.Context
	file    *mdbfile.File
	plain   bool // values are of format 1
	changes map[string]change
	keys    []string // of changes, ascending

	at     int         // of keys, in this pass
	unread int64       // in this pass, bytes
	gap    *gap        // not passed on yet: the next one may touch it
	pass   salvagePass // the present one
	found  [][]patch   // in each gap, in order
	held   int         // bytes in found
	report Salvaged
}

// gap is a range of keys of which nothing is known: up to to, nil is the end.
type gap struct{ from, to []byte }

// patch is a pair of Published. Its value is nil if it is in overflow pages.
type patch struct {
	key, value []byte
	valueLen   int
}

// salvagePass is what a pass does with what it meets, in key order.
type salvagePass interface {
	pair(key []byte, valueLen int, value func() []byte) error
	lost(g gap) error
}

func (v *salvor) run(p salvagePass) error {
	v.at, v.gap, v.pass, v.unread = 0, nil, p, 0
	if err := v.file.Remains(v.ctx, dbKV, v); err != nil {
		return err
	}
	v.report.Unread = v.unread
	return v.changesBefore(nil, true)
}

// Pair implements mdbfile.Remains.
func (v *salvor) Pair(key []byte, valueLen int, value func() []byte) error {
	if err := v.changesBefore(key, false); err != nil {
		return err
	}
	if v.at < len(v.keys) && v.keys[v.at] == string(key) {
		v.at++
		return v.changed(string(key))
	}
	if err := v.passGap(); err != nil {
		return err
	}
	if !v.plain {
		return v.pass.pair(key, valueLen, value)
	}
	return v.pass.pair(key, max(0, valueLen-plainLen)+checkedLen, func() []byte {
		raw := value()
		return appendValue(nil, key, raw[min(plainLen, len(raw)):])
	})
}

// Lost implements mdbfile.Remains.
func (v *salvor) Lost(from, to []byte) error {
	v.unread += PageSize
	if err := v.changesBefore(from, false); err != nil {
		return err
	}
	// What changed in there Published knows as well.
	for v.at < len(v.keys) && (to == nil || v.keys[v.at] < string(to)) {
		v.at++
	}
	return v.lost(bytes.Clone(from), bytes.Clone(to))
}

// changesBefore passes on what changed at keys before key, or at all that are left,
// of those that the environment does not have.
func (v *salvor) changesBefore(key []byte, all bool) error {
	for v.at < len(v.keys) && (all || v.keys[v.at] < string(key)) {
		v.at++
		if err := v.changed(v.keys[v.at-1]); err != nil {
			return err
		}
	}
	if all {
		return v.passGap()
	}
	return nil
}

func (v *salvor) changed(key string) error {
	c := v.changes[key]
	if !c.known {
		return v.lost([]byte(key), append([]byte(key), 0))
	}
	if !c.put {
		return nil
	}
	if err := v.passGap(); err != nil {
		return err
	}
	return v.pass.pair([]byte(key), len(c.value), func() []byte { return c.value })
}

// lost notes a gap; those that touch become one.
func (v *salvor) lost(from, to []byte) error {
	if v.gap != nil && v.gap.to != nil && bytes.Equal(v.gap.to, from) {
		v.gap.to = to
		return nil
	}
	if err := v.passGap(); err != nil {
		return err
	}
	v.gap = &gap{from, to}
	return nil
}

func (v *salvor) passGap() error {
	if v.gap == nil {
		return nil
	}
	g := *v.gap
	v.gap = nil
	return v.pass.lost(g)
}

// plan is the first pass: it finds out what was lost, and lays everything out.
func (v *salvor) plan() (*mdbfile.Plan, error) {
	p := &planPass{salvor: v}
	if err := p.planner.DB(dbKV); err != nil {
		return nil, err
	}
	if err := v.run(p); err != nil {
		return nil, err
	}
	if err := p.planner.DB(dbMeta); err != nil {
		return nil, err
	}
	for _, f := range metaFields {
		if err := p.planner.Add([]byte(f.key), f.size); err != nil {
			return nil, err
		}
	}
	return p.planner.Plan()
}

type planPass struct {
	*salvor
	planner mdbfile.Planner
}

func (p *planPass) pair(key []byte, valueLen int, _ func() []byte) error {
	p.report.Pairs++
	return p.planner.Add(key, valueLen)
}

func (p *planPass) lost(g gap) error {
	p.report.Lost++
	patches, err := p.lookUp(g)
	if err != nil {
		return fmt.Errorf("look up what was lost from key %.40q on: %w", g.from, err)
	}
	p.found = append(p.found, patches)
	for _, patch := range patches {
		if err := p.pair(patch.key, patch.valueLen, nil); err != nil {
			return err
		}
	}
	return nil
}

// stepBack is by how many pages a look into Published begins earlier, if it began too
// late.
const stepBack = 8

// lookUp finds the pairs of a gap in Published, from where they would stand.
func (p *planPass) lookUp(g gap) ([]patch, error) {
	// The last two pages are meta's leaf and the names of the databases.
	end := uint64(p.Want.Size)/mdbfile.PageSize - 2
	for from := p.planner.NextPage(); ; from -= min(from, stepBack) {
		from = max(from, mdbfile.FirstPage)
		patches, early, err := p.scan(from, end, g)
		if err != nil || early || from == mdbfile.FirstPage {
			return patches, err
		}
	}
}

// scan is lookUp from a page on. early is false if there may be pairs of the gap before.
func (p *planPass) scan(from, end uint64, g gap) (patches []patch, early bool, err error) {
	first, full := true, false
	held := p.held
	err = mdbfile.ScanLeaves(p.Published, from, end, func(key, value []byte, valueLen int) bool {
		below := bytes.Compare(key, g.from) < 0
		if first {
			first, early = false, below || g.from == nil && from == mdbfile.FirstPage
			if !early && from != mdbfile.FirstPage {
				return false
			}
		}
		if g.to != nil && bytes.Compare(key, g.to) >= 0 {
			return false
		}
		if below {
			return true
		}
		patches = append(patches, patch{bytes.Clone(key), bytes.Clone(value), valueLen})
		held += len(key) + len(value)
		full = held > maxSalvage
		return !full && p.ctx.Err() == nil
	})
	switch {
	case err != nil:
	case full:
		err = fmt.Errorf("%w: more than %d bytes were lost", ErrTooFar, maxSalvage)
	case p.ctx.Err() != nil:
		err = context.Cause(p.ctx)
	}
	p.held = held
	return patches, early, err
}

// write is the second pass. With sum the digest is that of the pairs as they are.
func (v *salvor) write(out io.Writer, plan *mdbfile.Plan, state State, sum bool) error {
	p := &writePass{salvor: v, out: mdbfile.NewWriter(out, plan)}
	if err := p.out.DB(dbKV); err != nil {
		return err
	}
	if err := v.run(p); err != nil {
		return err
	}
	if sum {
		state.Digest = p.sum.Digest
	}
	if err := p.out.DB(dbMeta); err != nil {
		return err
	}
	state.Time = time.Unix(0, state.Time.UnixNano()).UTC()
	for _, f := range metaFields {
		if err := p.out.Add([]byte(f.key), f.value(state)); err != nil {
			return err
		}
	}
	return p.out.Close()
}

type writePass struct {
	*salvor
	out  *mdbfile.Writer
	sum  sum
	gaps int // passed
}

func (p *writePass) pair(key []byte, _ int, value func() []byte) error {
	raw := value()
	if len(raw) >= checkedLen {
		p.sum.add(key, raw[checkedLen:])
	}
	return p.out.Add(key, raw)
}

func (p *writePass) lost(gap) error {
	if p.gaps == len(p.found) {
		return fmt.Errorf("%w: more of it can not be read than a moment ago", ErrDamaged)
	}
	patches := p.found[p.gaps]
	p.gaps++
	for _, patch := range patches {
		err := p.pair(patch.key, patch.valueLen, func() []byte {
			if patch.value == nil {
				return make([]byte, patch.valueLen)
			}
			return patch.value
		})
		if err != nil {
			return err
		}
	}
	return nil
}
