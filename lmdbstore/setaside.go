package lmdbstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// damagedSuffix ends the name of a generation that is kept as evidence.
const damagedSuffix = ".damaged"

// SetAside makes the store in dir, which nobody has open (ErrInUse), an empty
// one: the current generation becomes NAME.damaged, evidence for a person, and
// Open makes a new one. One is kept: the evidence of an earlier call is removed,
// and so is what a crash left over. If CURRENT is damaged or missing, the
// youngest generation counts as current. evidence is the path, "" if there was
// nothing to keep. After a crash or an error, call it again.
//
// It is for replicas, which get their data again. The only copy of the data is
// never set aside by a program.
func SetAside(dir string) (evidence string, err error) {
	lock, err := lockDir(dir, syscall.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("set store aside: %w", err)
	}
	defer lock.Close()
	if evidence, err = setAside(dir); err != nil {
		return "", fmt.Errorf("set store %s aside: %w", dir, err)
	}
	return evidence, nil
}

func setAside(dir string) (evidence string, err error) {
	numbers, err := generations(dir)
	if err != nil {
		return "", err
	}
	current, err := readCurrent(dir)
	if err != nil && len(numbers) > 0 {
		current = slices.Max(numbers)
	}
	if slices.Contains(numbers, current) {
		if evidence, err = keepEvidence(dir, current); err != nil {
			return "", err
		}
	} else if kept, err := evidenceIn(dir); err != nil {
		return "", err
	} else if len(kept) > 0 { // an earlier call came so far
		evidence = filepath.Join(dir, kept[len(kept)-1])
	}
	for _, n := range numbers {
		if n != current {
			if err := durable.RemoveAll(durable.OS, filepath.Join(dir, nameOf(n))); err != nil {
				return "", err
			}
		}
	}
	// Last, so that a crash before leaves a store that Open refuses.
	if err := durable.Remove(durable.OS, filepath.Join(dir, currentFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return evidence, nil
}

// keepEvidence renames a generation that nobody has open, instead of the
// evidence that was kept before.
func keepEvidence(dir string, number uint64) (path string, err error) {
	kept, err := evidenceIn(dir)
	if err != nil {
		return "", err
	}
	for _, name := range kept {
		if err := durable.RemoveAll(durable.OS, filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	path = filepath.Join(dir, nameOf(number)+damagedSuffix)
	return path, durable.Rename(durable.OS, filepath.Join(dir, nameOf(number)), path)
}

// KeepEvidence has a generation, if it is current, kept once it is replaced, as one in
// which damage was found is: it is sound for all that LMDB knows, and something else
// says that it is wrong.
func (s *Store) KeepEvidence(generation uint64) {
	if g := s.current.Load(); g.number == generation {
		g.evidence.Store(true)
	}
}

// evidenceIn returns the names of what is kept in dir.
func evidenceIn(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), damagedSuffix)
		if _, valid := numberOf(name); ok && valid {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
