package lmdbstore

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// injury is the first damage that was found in an open environment. From then on
// nothing is read from it and nothing written to it: what LMDB makes of a damaged
// page is not to be trusted, nor what it reads elsewhere of the same disk.
type injury struct {
	once  sync.Once
	err   atomic.Pointer[error]
	found chan struct{} // closed once err is set
}

func newInjury() *injury { return &injury{found: make(chan struct{})} }

// get returns what was found, nil while the environment is sound for all that
// is known.
func (i *injury) get() error {
	if err := i.err.Load(); err != nil {
		return *err
	}
	return nil
}

// note returns err. If it is about damage, it is what get returns from now on.
func (e *env) note(err error) error {
	if err == nil {
		return nil
	}
	if isUnsound(err) && !errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if errors.Is(err, ErrDamaged) {
		e.injury.once.Do(func() {
			first := fmt.Errorf("environment %s: %w", e.dir, err)
			e.injury.err.Store(&first)
			close(e.injury.found)
			e.log.Error("an environment is damaged; nothing more is read from it", "dir", e.dir, "err", err)
		})
	}
	return err
}

// Damage returns the first damage that was found in the current generation: by a
// read, an Apply, a Mint or a Scrub. Since then each of them fails with
// ErrDamaged. It is nil again after another generation was activated.
func (s *Store) Damage() error { return s.current.Load().env.injury.get() }

// DamageIn is Damage, and says which generation it was found in.
func (s *Store) DamageIn() (generation uint64, err error) {
	g := s.current.Load()
	return g.number, g.env.injury.get()
}

// Damaged returns a channel that is closed when the current generation is found
// to be damaged. Each generation has its own: ask again after Activate.
func (s *Store) Damaged() <-chan struct{} { return s.current.Load().env.injury.found }
