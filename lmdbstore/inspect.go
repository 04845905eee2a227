package lmdbstore

import (
	"fmt"
	"os"
)

// inspect reads where an environment file stands without mapping it.
func inspect(file string) (State, error) {
	info, err := os.Stat(file)
	if err != nil {
		return State{}, err
	}
	if info.Size() < 8192 {
		return State{}, fmt.Errorf("%w: %s is %d bytes long", ErrDamaged, file, info.Size())
	}
	return State{}, nil
}
