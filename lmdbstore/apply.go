package lmdbstore

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/txlog"
)

// Bounds of one LMDB transaction. LMDB keeps every page that it changes in
// memory until the commit, and never gives small ones back: one page for each
// operation at worst.
const (
	maxTxnOps   = 8192
	maxTxnBytes = 32 << 20
)

// readerCheckEvery bounds how long slots of dead readers hold pages back.
const readerCheckEvery = 10 * time.Second

// apply is Store.Apply on one generation.
func (g *generation) apply(entries []txlog.Entry, m *metrics) error {
	g.env.writer.Lock()
	defer g.env.writer.Unlock()
	state := *g.state.Load()
	if err := checkLinks(state, entries); err != nil {
		return err
	}
	if now := time.Now(); now.Sub(g.env.checked) > readerCheckEvery && g.env.ldb != nil {
		g.env.checked = now
		g.env.checkReaders()
	}
	for limit := maxTxnOps; len(entries) > 0; {
		n := fitting(entries, limit)
		began := time.Now()
		err := g.commit(entries[:n])
		switch {
		case err == nil:
			m.committed(n, time.Since(began))
			entries = entries[n:]
		case isMapFull(err):
			if err := g.env.grow(); err != nil {
				return err
			}
		case isTxnFull(err) && n > 1:
			limit = opCount(entries[:n]) / 2
		case errors.Is(err, errEnvClosed):
			return err
		default:
			return fmt.Errorf("apply entries %d to %d (nothing of them was applied): %w",
				entries[0].Seq, entries[n-1].Seq, g.env.explain(err))
		}
	}
	return g.env.growIfQuiet()
}

// checkLinks proves that entries follow state, and each other.
func checkLinks(state State, entries []txlog.Entry) error {
	at := state.Pos
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Seq <= at.Seq:
			return fmt.Errorf("apply entry %d: it is at or before the applied position %s", e.Seq, at)
		case e.Seq > at.Seq+1:
			return &txlog.DivergedError{Seq: e.Seq - 1, Want: e.Prev}
		case e.Prev != at.Hash:
			return &txlog.DivergedError{Seq: at.Seq, Have: at.Hash, Want: e.Prev}
		case (e.Seq == 1) != (len(e.Ops) == 1 && e.Ops[0].Kind == txlog.Init):
			return fmt.Errorf("apply entry %d: entry 1, and no other, begins a dataset", e.Seq)
		}
		at = e.Pos()
	}
	return nil
}

// fitting returns how many of the entries go into one transaction, at least one.
func fitting(entries []txlog.Entry, maxOps int) int {
	ops, size := 0, 0
	for i := range entries {
		ops += len(entries[i].Ops)
		size += len(entries[i].Frame())
		if i > 0 && (ops > maxOps || size > maxTxnBytes) {
			return i
		}
	}
	return len(entries)
}

func opCount(entries []txlog.Entry) (n int) {
	for i := range entries {
		n += len(entries[i].Ops)
	}
	return n
}

// commit applies entries that link, with the position they lead to. Errors of
// the binding come unwrapped. The caller holds the environment's writer.
func (g *generation) commit(entries []txlog.Entry) error {
	state := *g.state.Load()
	err := g.env.update(func(w *writeTxn) error {
		for i := range entries {
			for _, op := range entries[i].Ops {
				if err := w.apply(op, &state); err != nil {
					return err
				}
			}
		}
		last := &entries[len(entries)-1]
		state.Pos, state.Time = last.Pos(), time.Unix(0, last.Time.UnixNano()).UTC()
		if err := w.putMeta(metaPos, encodePos(state.Pos)); err != nil {
			return err
		}
		return w.putMeta(metaTime, encodeTime(state.Time))
	})
	if err == nil {
		g.state.Store(&state)
	}
	return err
}

func (w *writeTxn) apply(op txlog.Op, state *State) error {
	switch op.Kind {
	case txlog.Put:
		return w.put(op.Key, op.Value)
	case txlog.Delete:
		return w.del(op.Key)
	case txlog.Init:
		if len(op.Value) != len(state.Dataset) {
			return fmt.Errorf("dataset id is %d bytes long, not %d", len(op.Value), len(state.Dataset))
		}
		copy(state.Dataset[:], op.Value)
		if err := w.putMeta(metaDataset, op.Value); err != nil {
			return err
		}
		return w.putMeta(metaFormat, encodeFormat())
	}
	return fmt.Errorf("operation of unknown kind %d", op.Kind)
}

// grow doubles the map. Readers that run keep it waiting, new ones wait for it.
// The caller holds writer.
func (e *env) grow() error {
	before := e.mapBytes.Load()
	if err := e.remap(2*before, e.readers.current()); err != nil {
		return err
	}
	if e.mapBytes.Load() <= before {
		return fmt.Errorf("the map of %s is full at %d bytes and the system refuses more address space (ulimit -v?)", e.dir, before)
	}
	return nil
}

// growIfQuiet doubles a map that is more than half full at a moment without
// readers, so that grow rarely has to wait for one. The caller holds writer.
func (e *env) growIfQuiet() error {
	if e.ldb == nil {
		return nil
	}
	used, err := e.usedBytes()
	if err != nil || 2*used < e.mapBytes.Load() || !e.readers.tryDrain() {
		return err
	}
	defer e.readers.resume()
	return e.reopen(2 * e.mapBytes.Load())
}

// explain adds what to do to an error of a write transaction.
func (e *env) explain(err error) error {
	errno := sysErrno(err)
	full := errors.Is(errno, syscall.ENOSPC) || errors.Is(errno, syscall.EDQUOT)
	// LMDB calls a write that was cut short EIO; callers wait for room on ENOSPC.
	if errors.Is(errno, syscall.EIO) && durable.FreeSpace(e.dir) < maxTxnBytes {
		full, errno = true, syscall.ENOSPC
	}
	switch {
	case full:
		return fmt.Errorf("no space left on the file system of %s; free some and try again: %w", e.dir, errno)
	case isUnsound(err):
		return fmt.Errorf("%w: %s: %w", ErrDamaged, e.dir, errno)
	}
	return errno
}
