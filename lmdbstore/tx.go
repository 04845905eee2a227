package lmdbstore

import (
	"bytes"
	"errors"
	"fmt"

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
func (e *env) view(fn func(*Tx) error) error {
	t, err := e.begin(nil)
	if err != nil {
		return err
	}
	tx := &Tx{e, t}
	defer func() {
		tx.t = nil
		e.end(t)
	}()
	return fn(tx)
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
	raw, ok, err := t.get(e.kv, key)
	if err == nil && ok {
		raw, err = untag(raw)
	}
	if err != nil {
		return dst, false, fmt.Errorf("get %q: %w", key, err)
	}
	return append(dst, raw...), ok, nil
}

// storable reports whether there can be such a key.
func storable(key []byte) bool { return len(key) > 0 && len(key) <= txlog.MaxKey }

// State returns the state that the transaction sees.
func (t *Tx) State() (State, error) {
	if t.t == nil {
		return State{}, errTxEnded
	}
	return readState(func(key string) ([]byte, bool, error) { return t.t.get(t.env.meta, []byte(key)) })
}

// Pairs returns the number of the user's pairs.
func (t *Tx) Pairs() (uint64, error) {
	if t.t == nil {
		return 0, errTxEnded
	}
	stat, err := t.t.txn.Stat(t.env.kv)
	if err != nil {
		return 0, err
	}
	return stat.Entries, nil
}

// Get returns key's value, which points into the map: it is valid until the
// transaction ends and must not be written to. A key that cannot be stored is
// not there.
func (t *Tx) Get(key []byte) (value []byte, ok bool, err error) {
	if t.t == nil {
		return nil, false, errTxEnded
	}
	if !storable(key) {
		return nil, false, nil
	}
	raw, ok, err := t.t.get(t.env.kv, key)
	if err == nil && ok {
		raw, err = untag(raw)
	}
	if err != nil {
		return nil, false, fmt.Errorf("get %q: %w", key, err)
	}
	return raw, ok, nil
}

// Range selects pairs by key. The zero value selects all, ascending.
type Range struct {
	Prefix  []byte // only keys that begin so
	Start   []byte // only keys ≥ Start
	End     []byte // only keys < End; nil: no bound
	Reverse bool   // descending
	Limit   int    // at most so many pairs; 0: no limit
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
	c, key, raw, err := first(t, from)
	if c != nil {
		defer c.Close()
	}
	for n := 0; err == nil; key, raw, err = c.Get(nil, nil, step) {
		if r.Reverse && bytes.Compare(key, start) < 0 || !r.Reverse && end != nil && bytes.Compare(key, end) >= 0 {
			return nil
		}
		value, err := untag(raw)
		if err != nil {
			return fmt.Errorf("scan at %q: %w", key, err)
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
	return fmt.Errorf("scan: %w", err)
}
