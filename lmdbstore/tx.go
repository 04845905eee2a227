package lmdbstore

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/qs-peer/qs-peer/txlog"
)

// ErrStop ends a Scan early without an error.
var ErrStop = errors.New("stop")

// Tx is a read transaction. It sees one state, whatever is applied meanwhile.
// One goroutine may use it at a time; it ends when View's fn returns.
type Tx struct {
	env *env
	t   *readTxn // nil once it ended
}

// view runs fn in a read transaction.
func (e *env) view(fn func(*Tx) error) error { return e.viewBy(&e.writer, fn) }

// viewBy is view for who may hold e.writer already.
func (e *env) viewBy(writer sync.Locker, fn func(*Tx) error) error {
	t, err := e.beginBy(nil, writer)
	if err != nil {
		return err
	}
	tx := &Tx{e, t}
	defer func() {
		tx.t = nil
		e.end(t)
	}()
	if err := fn(tx); err != nil {
		return err
	}
	return e.injury.get()
}

// get appends key's value to dst.
func (e *env) get(dst, key []byte) (value []byte, ok bool, err error) {
	if !storable(key) {
		return dst, false, nil
	}
	t, err := e.begin(nil)
	if err != nil {
		return dst, false, err
	}
	defer e.end(t)
	raw, ok, err := t.peek(e.kv, key)
	if raw, err = e.take(t, key, raw, ok, err); err != nil {
		return dst, false, err
	}
	value = append(dst, raw...)
	if err := e.injury.get(); err != nil {
		return dst, false, err
	}
	return value, ok, nil
}

// take makes the user's value of what a search for key found, and verifies it.
func (e *env) take(t *readTxn, key, raw []byte, ok bool, err error) ([]byte, error) {
	switch {
	case err != nil:
	case ok:
		raw, err = e.values.open(key, raw)
	default:
		err = e.absent(t, key)
	}
	if err != nil {
		return nil, e.note(fmt.Errorf("get: %w", e.pairError(key, err)))
	}
	return raw, nil
}

// storable reports whether there can be such a key.
func storable(key []byte) bool { return len(key) > 0 && len(key) <= txlog.MaxKey }

// State returns the state that the transaction sees.
func (t *Tx) State() (State, error) {
	if t.t == nil {
		return State{}, errTxEnded
	}
	state, _, err := readState(func(key string) ([]byte, bool, error) { return t.t.get(t.env.meta, []byte(key)) })
	return state, t.env.note(err)
}

// Pairs returns the number of the user's pairs.
func (t *Tx) Pairs() (uint64, error) {
	if t.t == nil {
		return 0, errTxEnded
	}
	n, err := t.t.txn.Entries(t.env.kv)
	return n, t.env.note(err)
}

// Get returns a copy of key's value. A key that cannot be stored is not there.
func (t *Tx) Get(key []byte) (value []byte, ok bool, err error) {
	if t.t == nil {
		return nil, false, errTxEnded
	}
	if !storable(key) {
		return nil, false, nil
	}
	raw, ok, err := t.t.get(t.env.kv, key)
	raw, err = t.env.take(t.t, key, raw, ok, err)
	return raw, ok && err == nil, err
}

// GetWithin is Get, and asks room before it takes memory for a long value (from 64 KiB
// on). An error of room is returned as it is.
func (t *Tx) GetWithin(key []byte, room func(bytes int) error) (value []byte, ok bool, err error) {
	if t.t == nil {
		return nil, false, errTxEnded
	}
	if !storable(key) {
		return nil, false, nil
	}
	var refused error
	raw, ok, err := found(t.t.txn.Get(t.env.kv, key, nil, func(n int) error {
		refused = room(n)
		return refused
	}))
	if refused != nil {
		return nil, false, refused
	}
	raw, err = t.env.take(t.t, key, raw, ok, err)
	return raw, ok && err == nil, err
}

// Size returns the length of key's value, which it does not read.
func (t *Tx) Size(key []byte) (bytes int, ok bool, err error) {
	if t.t == nil {
		return 0, false, errTxEnded
	}
	if !storable(key) {
		return 0, false, nil
	}
	if t.env.values.plain { // what stands before a value differs
		v, ok, err := t.Get(key)
		return len(v), ok, err
	}
	n, err := t.t.txn.Size(t.env.kv, key)
	if isNotFound(err) {
		_, err = t.env.take(t.t, key, nil, false, nil)
		return 0, false, err
	}
	if err != nil {
		_, err = t.env.take(t.t, key, nil, false, err)
		return 0, false, err
	}
	return max(0, n-checkedLen), true, nil
}

// Range selects pairs by key. The zero value selects all, ascending.
type Range struct {
	Prefix  []byte // only keys that begin so
	Start   []byte // only keys ≥ Start
	End     []byte // only keys < End; nil: no bound
	Reverse bool   // descending
	Limit   int    // at most so many pairs; 0: no limit
	// KeysOnly leaves values out: they are verified, but take no memory.
	KeysOnly bool
	// Room, if not nil, is asked before more memory is taken for long values (from 64 KiB
	// on); an error of it ends the scan, and is returned.
	Room func(bytes int) error
}

// bounds returns the range as start ≤ key < end, where a nil end is no bound.
func (r Range) bounds() (start, end []byte) {
	start, end = r.Start, r.End
	if bytes.Compare(r.Prefix, start) > 0 {
		start = r.Prefix
	}
	if after := successor(r.Prefix); after != nil && (end == nil || bytes.Compare(after, end) < 0) {
		end = after
	}
	return start, end
}

// successor returns the first key after all that begin with prefix, nil if
// there is none.
func successor(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			next := bytes.Clone(prefix[:i+1])
			next[i]++
			return next
		}
	}
	return nil
}

// Scan calls fn with the pairs of r in order, until fn returns an error, which
// it returns (ErrStop: nil). Key and value are valid during the call only.
func (t *Tx) Scan(r Range, fn func(key, value []byte) error) error {
	if t.t == nil {
		return errTxEnded
	}
	start, end := r.bounds()
	if end != nil && bytes.Compare(start, end) >= 0 {
		return nil
	}
	first, step := firstAtOrAfter, uint(opNext)
	from := start
	if r.Reverse {
		first, step = lastBefore, opPrev
		from = end
	}
	c, key, raw, err := first(t, &r, from)
	if c != nil {
		defer c.Close()
	}
	if err == nil || isNotFound(err) {
		if wrong := t.env.landed(t.t, from); wrong != nil {
			return t.env.note(fmt.Errorf("scan: %w", wrong))
		}
	}
	var last []byte // key; a damaged one, or a damaged page above, breaks the order
	for n := 0; err == nil; key, raw, err = c.Get(nil, step) {
		var value []byte
		if raw == nil {
			err = t.env.values.check(key, c.Part)
		} else {
			value, err = t.env.values.open(key, raw)
		}
		if err != nil {
			return t.env.note(fmt.Errorf("scan: %w", t.env.pairError(key, err)))
		}
		if r.KeysOnly {
			value = nil
		}
		if order := bytes.Compare(last, key); n > 0 && (order == 0 || order > 0 != r.Reverse) {
			return t.env.note(fmt.Errorf("scan: %w", t.env.pairError(key, fmt.Errorf("%w: it follows %q", ErrDamaged, last))))
		}
		last = append(last[:0], key...)
		// Only now: a damaged key may seem to be out of range.
		if r.Reverse && bytes.Compare(key, start) < 0 || !r.Reverse && end != nil && bytes.Compare(key, end) >= 0 {
			return nil
		}
		if err := fn(key, value); err != nil {
			if errors.Is(err, ErrStop) {
				return nil
			}
			return err
		}
		if n++; n == r.Limit {
			return nil
		}
	}
	if isNotFound(err) {
		return nil
	}
	return t.env.note(fmt.Errorf("scan: %w", err))
}
