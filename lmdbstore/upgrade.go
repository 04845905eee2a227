package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// upgrade writes what the environment file source holds to target, in the
// current format, and fsyncs it. The result is a canonical snapshot. A file of
// the current format is left alone: done is false then.
func upgrade(ctx context.Context, target, source string) (done bool, err error) {
	f, size, err := openFile(source)
	if err != nil {
		return false, err
	}
	defer f.Close()
	file, err := mdbfile.Open(f, size)
	if err != nil {
		return false, fmt.Errorf("%s: %w", source, err)
	}
	_, format, err := stateOf(file)
	if err != nil || format == Format {
		return false, err
	}
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false, err
	}
	p := &pinned{file: file, where: source, values: encoding{plain: true}}
	info, plan, err := p.measure(ctx)
	if err == nil {
		err = p.write(ctx, out, info.State, plan)
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return false, fmt.Errorf("upgrade %s from format %d to %d: %w", source, format, Format, err)
	}
	return true, nil
}

// upgradeCopy upgrades an environment file that nobody has open, in its place.
func upgradeCopy(ctx context.Context, file string) error {
	newer := file + ".upgraded"
	done, err := upgrade(ctx, newer, file)
	if err != nil || !done {
		return err
	}
	return os.Rename(newer, file)
}

// upgradeCurrent replaces the current generation, number, which nobody has open
// for writing, if it is of an older format, and returns the number of the one
// that is current then. A crash leaves one or the other, and leftovers.
func (s *Store) upgradeCurrent(number uint64) (uint64, error) {
	from, to := filepath.Join(s.dir, nameOf(number)), filepath.Join(s.dir, nameOf(number+1))
	if _, format, err := inspect(filepath.Join(from, dataFile)); err != nil || format == Format {
		return number, nil // what is wrong with it is openGeneration's to say
	}
	s.options.Logger.Info("upgrading the store", "generation", number, "to_format", Format)
	if err := durable.RemoveAll(durable.OS, to); err != nil {
		return 0, err
	}
	if err := durable.MkdirAll(durable.OS, to, 0o755); err != nil {
		return 0, err
	}
	if _, err := upgrade(s.stopped, filepath.Join(to, dataFile), filepath.Join(from, dataFile)); err != nil {
		return 0, errors.Join(err, durable.RemoveAll(durable.OS, to))
	}
	if err := durable.Sync(durable.OS, to); err != nil {
		return 0, err
	}
	return number + 1, writeCurrent(s.dir, number+1)
}
