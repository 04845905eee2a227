package lmdbstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// SnapshotInfo says what a minted file is.
type SnapshotInfo struct {
	State
	Pairs  uint64 // of the user
	Size   int64  // bytes
	Format int
}

// errYield ends a mint or a scrub whose environment is to be remapped or replaced.
var errYield = errors.New("the environment is wanted")

// Mint writes a canonical snapshot of the current generation. It calls begin
// once the result has been measured, and then writes exactly Size bytes, front
// to back, to the writer that begin returns. If the environment had to be
// remapped or was replaced meanwhile begin is called again and the writing
// starts over. Writes to the store go on. Damage that it comes across is
// ErrDamaged; a store to which nothing was applied has no snapshot. The call
// takes one of MaxReaders and about 3 MiB of memory.
func (s *Store) Mint(ctx context.Context, begin func(SnapshotInfo) (io.Writer, error)) (SnapshotInfo, error) {
	if !s.working() {
		return SnapshotInfo{}, ErrClosed
	}
	defer s.work.Done()
	ctx, cancel := s.until(ctx)
	defer cancel()
	for {
		var info SnapshotInfo
		err := s.with(func(g *generation) (err error) {
			info, err = g.mint(ctx, begin)
			return err
		})
		switch {
		case err == nil:
			return info, nil
		case s.stopped.Err() != nil:
			return SnapshotInfo{}, ErrClosed
		case errors.Is(err, errYield):
			s.options.Logger.Info("mint starts over: its environment was remapped or replaced")
		default:
			return SnapshotInfo{}, fmt.Errorf("mint: %w", err)
		}
	}
}

// mint is one attempt. It reads the file beside LMDB's map, under a read
// transaction that keeps the pages as they are.
func (g *generation) mint(ctx context.Context, begin func(SnapshotInfo) (io.Writer, error)) (SnapshotInfo, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p, err := g.pin(func() { cancel(errYield) }, openMapped)
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer p.close()

	info, plan, err := p.measure(ctx)
	if err != nil {
		return SnapshotInfo{}, g.env.note(err)
	}
	out, err := begin(info)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return info, g.env.note(p.write(ctx, out, info.State, plan))
}

// pinned is one state of an environment, read through its file.
type pinned struct {
	file    *mdbfile.File
	where   string // the file
	values  encoding
	release func()
}

// source is what a pinned file is read through.
type source interface {
	io.ReaderAt
	close() error
}

// pin begins a read transaction and opens the file at it. The writer is kept
// out meanwhile: LMDB describes only its two latest transactions in the file.
func (g *generation) pin(interrupt func(), open func(file string) (source, int64, error)) (*pinned, error) {
	g.env.writer.Lock()
	defer g.env.writer.Unlock()
	t, err := g.env.beginBy(interrupt, new(sync.Mutex))
	if err != nil {
		return nil, err
	}
	where := filepath.Join(g.dir, dataFile)
	from, size, err := open(where)
	if err != nil {
		g.env.end(t)
		return nil, err
	}
	release := func() {
		from.close() // only read from
		g.env.end(t)
	}
	file, err := mdbfile.OpenTxn(from, size, t.txn.ID())
	if err != nil {
		release()
		return nil, err
	}
	return &pinned{file: file, where: where, values: g.env.values, release: release}, nil
}

func (p *pinned) close() { p.release() }

// each calls pair with the user's pairs, in order.
func (p *pinned) each(ctx context.Context, pair func(*mdbfile.Cursor) error) error {
	c, err := p.file.Cursor(dbKV)
	if err != nil {
		return err
	}
	defer c.Close()
	for n := 0; c.Next(); n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := pair(c); err != nil {
			return err
		}
	}
	return c.Err()
}

// measure lays the snapshot out.
func (p *pinned) measure(ctx context.Context) (SnapshotInfo, *mdbfile.Plan, error) {
	state, format, err := stateOf(p.file)
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	if state.Pos.IsZero() {
		return SnapshotInfo{}, nil, errors.New("nothing was applied to the store yet")
	}
	overhead := checkedLen
	if format == 1 {
		overhead = plainLen
	}
	var planner mdbfile.Planner
	if err := planner.DB(dbKV); err != nil {
		return SnapshotInfo{}, nil, err
	}
	err = p.each(ctx, func(c *mdbfile.Cursor) error {
		n := c.ValueLen() - overhead
		if n < 0 {
			return &DamageError{p.where, bytes.Clone(c.Key()), fmt.Errorf("%w: its value has %d bytes", ErrDamaged, c.ValueLen())}
		}
		return planner.Add(c.Key(), checkedLen+n)
	})
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	if err := planner.DB(dbMeta); err != nil {
		return SnapshotInfo{}, nil, err
	}
	for _, f := range metaFields {
		if err := planner.Add([]byte(f.key), f.size); err != nil {
			return SnapshotInfo{}, nil, err
		}
	}
	plan, err := planner.Plan()
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	kv, _ := plan.Stat(dbKV)
	return SnapshotInfo{State: state, Pairs: kv.Entries, Size: plan.Size(), Format: Format}, plan, nil
}

// write writes what was measured. The pairs must have the state's digest, or get
// one if they are of a format without.
func (p *pinned) write(ctx context.Context, out io.Writer, state State, plan *mdbfile.Plan) error {
	w := mdbfile.NewWriter(untilDone{ctx, out}, plan)
	if err := w.DB(dbKV); err != nil {
		return err
	}
	var sum sum
	var buf []byte
	err := p.each(ctx, func(c *mdbfile.Cursor) error {
		raw, err := c.Value()
		if err != nil {
			return err
		}
		value, err := p.values.open(c.Key(), raw)
		if err != nil {
			return &DamageError{p.where, bytes.Clone(c.Key()), err}
		}
		sum.add(c.Key(), value)
		if p.values.plain {
			buf = appendValue(buf[:0], c.Key(), value)
			raw = buf
		}
		return w.Add(c.Key(), raw)
	})
	if err != nil {
		return err
	}
	if err := w.DB(dbMeta); err != nil {
		return err
	}
	if p.values.plain {
		state.Digest = sum.Digest
	} else if err := sum.matches(state); err != nil {
		return &DamageError{p.where, nil, err}
	}
	for _, f := range metaFields {
		if err := w.Add([]byte(f.key), f.value(state)); err != nil {
			return err
		}
	}
	return w.Close()
}

// untilDone writes until a context ends.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u untilDone) Write(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.w.Write(b)
}
