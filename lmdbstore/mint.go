package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// SnapshotInfo says what a minted file is.
type SnapshotInfo struct {
	State
	Pairs  uint64 // of the user
	Size   int64  // bytes
	Format int
}

// errYield ends a mint whose environment is to be remapped or replaced.
var errYield = errors.New("mint gives way")

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
	p, err := g.pin(func() { cancel(errYield) })
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer p.close()

	info, plan, err := p.measure(ctx)
	if err != nil {
		return SnapshotInfo{}, err
	}
	out, err := begin(info)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return info, p.write(ctx, out, plan)
}

// pinned is one state of an environment, read through its file.
type pinned struct {
	file    *mdbfile.File
	release func()
}

// pin begins a read transaction and opens the file at it. The writer is kept
// out meanwhile: LMDB describes only its two latest transactions in the file.
func (g *generation) pin(interrupt func()) (*pinned, error) {
	g.env.writer.Lock()
	defer g.env.writer.Unlock()
	t, err := g.env.begin(interrupt)
	if err != nil {
		return nil, err
	}
	f, size, err := openFile(filepath.Join(g.dir, dataFile))
	if err != nil {
		g.env.end(t)
		return nil, err
	}
	m, err := mapFile(f, size)
	f.Close() // only read from
	if err != nil {
		g.env.end(t)
		return nil, err
	}
	release := func() {
		m.close()
		g.env.end(t)
	}
	file, err := mdbfile.OpenTxn(m, size, uint64(t.txn.ID()))
	if err != nil {
		release()
		return nil, err
	}
	return &pinned{file, release}, nil
}

func (p *pinned) close() { p.release() }

// each calls db with the name of each database, in order, and pair with each of
// its pairs.
func (p *pinned) each(ctx context.Context, db func(name string) error, pair func(*mdbfile.Cursor) error) error {
	for _, name := range []string{dbKV, dbMeta} {
		if err := db(name); err != nil {
			return err
		}
		if err := p.pairs(ctx, name, pair); err != nil {
			return err
		}
	}
	return nil
}

func (p *pinned) pairs(ctx context.Context, name string, pair func(*mdbfile.Cursor) error) error {
	c, err := p.file.Cursor(name)
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
	state, err := stateOf(p.file)
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	if state.Pos.IsZero() {
		return SnapshotInfo{}, nil, errors.New("nothing was applied to the store yet")
	}
	var planner mdbfile.Planner
	err = p.each(ctx, planner.DB, func(c *mdbfile.Cursor) error { return planner.Add(c.Key(), c.ValueLen()) })
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	plan, err := planner.Plan()
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	kv, _ := plan.Stat(dbKV)
	return SnapshotInfo{State: state, Pairs: kv.Entries, Size: plan.Size(), Format: Format}, plan, nil
}

// write writes what was measured.
func (p *pinned) write(ctx context.Context, out io.Writer, plan *mdbfile.Plan) error {
	w := mdbfile.NewWriter(untilDone{ctx, out}, plan)
	err := p.each(ctx, w.DB, func(c *mdbfile.Cursor) error {
		value, err := c.Value()
		if err != nil {
			return err
		}
		return w.Add(c.Key(), value)
	})
	if err != nil {
		return err
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
