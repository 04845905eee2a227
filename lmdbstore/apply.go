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
	if err := g.env.injury.get(); err != nil {
		return err
	}
	if err := g.recover(g.env.broken); err != nil {
		return err
	}
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
				return g.env.note(err)
			}
		case isTxnFull(err) && n > 1:
			limit = opCount(entries[:n]) / 2
		case errors.Is(err, errEnvClosed):
			return err
		case needsHealing(err):
			if err := g.recover(err); err != nil {
				return err
			}
			if at := g.state.Load().Pos; at.Seq >= entries[0].Seq {
				return fmt.Errorf("apply entries %d to %d: %w: a commit that had failed counts, up to entry %d", entries[0].Seq, entries[n-1].Seq, syscall.EIO, at.Seq)
			}
		default:
			return g.env.note(fmt.Errorf("apply entries %d to %d (nothing of them was applied): %w",
				entries[0].Seq, entries[n-1].Seq, g.env.explain(err)))
		}
	}
	return g.env.note(g.env.growIfQuiet())
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
	reached := make([]stand, len(entries))
	err := g.env.update(func(w *writeTxn) error {
		for i := range entries {
			for _, op := range entries[i].Ops {
				if err := w.apply(op, &state); err != nil {
					return err
				}
			}
			reached[i] = stand{entries[i].Pos(), state.Digest}
		}
		last := &entries[len(entries)-1]
		state.Pos, state.Time = last.Pos(), time.Unix(0, last.Time.UnixNano()).UTC()
		return w.putState(state)
	})
	if err == nil {
		g.state.Store(&state)
		g.stands.add(reached...)
	}
	return err
}

func (w *writeTxn) apply(op txlog.Op, state *State) error {
	switch op.Kind {
	case txlog.Put:
		if err := w.put(op.Key, op.Value, &state.Digest); err != nil {
			return err
		}
		state.Digest = state.Digest.plus(w.env.hasher.element(op.Key, op.Value))
		return nil
	case txlog.Delete:
		return w.del(op.Key, &state.Digest)
	case txlog.Init:
		if len(op.Value) != len(state.Dataset) {
			return fmt.Errorf("dataset id is %d bytes long, not %d", len(op.Value), len(state.Dataset))
		}
		copy(state.Dataset[:], op.Value)
		return nil
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

// growRetry is how long growIfQuiet rests after the system refused it a larger map:
// each try closes the environment and opens it again.
const growRetry = time.Minute

// growIfQuiet doubles a map that is more than half full at a moment without
// readers, so that grow rarely has to wait for one. The caller holds writer.
func (e *env) growIfQuiet() error {
	if e.ldb == nil || time.Since(e.refused) < growRetry {
		return nil
	}
	before := e.mapBytes.Load()
	used, err := e.usedBytes()
	if err != nil || 2*used < before || !e.readers.tryDrain() {
		return err
	}
	defer e.readers.resume()
	err = e.reopen(2 * before)
	if err != nil || e.mapBytes.Load() <= before {
		e.refused = time.Now()
	}
	return err
}

// explain adds what to do to an error of a write transaction.
func (e *env) explain(err error) error {
	errno := sysErrno(err)
	if errno == nil {
		return err // not the binding's
	}
	full := errors.Is(errno, syscall.ENOSPC) || errors.Is(errno, syscall.EDQUOT)
	// LMDB calls a write that was cut short EIO; callers wait for room on ENOSPC.
	if errors.Is(errno, syscall.EIO) && durable.FreeSpace(e.dir) < maxTxnBytes {
		full, errno = true, syscall.ENOSPC
	}
	switch {
	case full:
		return fmt.Errorf("no space left on the file system of %s; free some and try again: %w", e.dir, errno)
	case isUnsound(err), isMapResized(err): // who writes is the only one to change the map
		return fmt.Errorf("%w: %s: %w", ErrDamaged, e.dir, errno)
	}
	return fmt.Errorf("write environment %s: %w", e.dir, errno)
}
