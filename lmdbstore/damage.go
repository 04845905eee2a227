package lmdbstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
)

// DamageError says what of an environment is damaged. It wraps ErrDamaged.
type DamageError struct {
	Where string // the file
	Key   []byte // of the pair that is damaged, nil if it is something else
	Err   error  // what was found; wraps ErrDamaged
}

func (e *DamageError) Error() string {
	if e.Key == nil {
		return fmt.Sprintf("%s: %v", e.Where, e.Err)
	}
	return fmt.Sprintf("%s: key %q: %v", e.Where, e.Key, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

// pairError says which pair of the environment an error is about.
func (e *env) pairError(key []byte, err error) error {
	if known := (*DamageError)(nil); errors.As(err, &known) {
		return err
	}
	if !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("key %q: %w", key, err)
	}
	return &DamageError{Where: filepath.Join(e.dir, dataFile), Key: bytes.Clone(key), Err: err}
}

// damageIn says which file an error about damage is about.
func damageIn(where string, err error) error {
	var known *DamageError
	if !errors.Is(err, ErrDamaged) || errors.As(err, &known) {
		return err
	}
	return &DamageError{Where: where, Err: err}
}
