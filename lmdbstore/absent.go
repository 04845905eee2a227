package lmdbstore

import (
	"bytes"
	"fmt"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
	"github.com/qs-peer/qs-peer/txlog"
)

// absent makes sure that key, which was not found, is not there: a damaged key,
// or a damaged page on the way to it, looks just like that. A search among keys of
// which one is wrong ends beside it, and one that was led astray ends among keys
// that are all greater or all less. So the neighbours have to be sound, and one on
// either side.
func (e *env) absent(t *readTxn, key []byte) error {
	if e.values.unchecked {
		return nil
	}
	next, last, buf, err := t.txn.Around(e.kv, key, t.scratch)
	if err != nil {
		return err
	}
	if cap(buf) > cap(t.scratch) && cap(buf) <= scratchKept {
		t.scratch = buf
	}
	if err := e.neighbour(t, key, next, 1); err != nil {
		return err
	}
	return e.neighbour(t, key, last, -1)
}

// landed makes sure that a search for where a scan begins was not led astray: key has
// to be there, and sound, or absent. Of a scan from an end no key was searched.
func (e *env) landed(t *readTxn, key []byte) error {
	if len(key) == 0 || e.values.unchecked {
		return nil
	}
	// Longer ones can not be there; see firstAtOrAfter.
	key = key[:min(len(key), txlog.MaxKey)]
	size, err := t.txn.Size(e.kv, key)
	switch {
	case isNotFound(err):
		return e.absent(t, key)
	case err != nil:
		return err
	case size > guard.Long:
		err = e.checkLong(t, key)
	default:
		var raw []byte
		if raw, _, err = t.peek(e.kv, key); err == nil {
			_, err = e.values.open(key, raw)
		}
	}
	if err != nil {
		return e.pairError(key, err)
	}
	return nil
}

// neighbour checks a pair, if there is one, whose key has to compare to key as
// side says.
func (e *env) neighbour(t *readTxn, key []byte, p guard.Pair, side int) error {
	if len(p.Key) == 0 {
		return nil
	}
	var err error
	if p.Long {
		err = e.checkLong(t, p.Key)
	} else {
		_, err = e.values.open(p.Key, p.Value)
	}
	if err == nil && bytes.Compare(p.Key, key) != side {
		err = fmt.Errorf("%w: it stands on the wrong side of %q, which is not found", ErrDamaged, key)
	}
	if err != nil {
		return e.pairError(p.Key, err)
	}
	return nil
}

// checkLong checks the pair of key, whose value is long, in parts.
func (e *env) checkLong(t *readTxn, key []byte) error {
	c, err := t.txn.OpenCursor(e.kv)
	if err != nil {
		return err
	}
	defer c.Close()
	c.KeysOnly = true
	if _, _, err := seek(c, key); err != nil {
		return err
	}
	return e.values.check(key, c.Part)
}
