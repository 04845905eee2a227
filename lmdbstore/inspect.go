package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// Names of the two databases, in the order in which a snapshot holds them.
const (
	dbKV   = "kv"
	dbMeta = "meta"
)

// inspect reads where an environment file stands without mapping it, so that a
// file that is cut short or is something else is an error and not a crash.
func inspect(file string) (State, error) {
	f, size, err := openFile(file)
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	m, err := mdbfile.Open(f, size)
	if err == nil && !m.Whole() { // which is sound if nothing uses the pages that it lacks
		_, err = mdbfile.Check(context.Background(), f, size)
	}
	if err != nil {
		return State{}, fmt.Errorf("%s: %w", file, err)
	}
	state, err := stateOf(m)
	if err != nil {
		return State{}, fmt.Errorf("%s: %w", file, err)
	}
	return state, nil
}

// inspectLive is inspect of a file to which another process may be writing,
// which can make a sound one look damaged for a moment.
func inspectLive(file string) error {
	const tries = 5
	var err error
	for range tries {
		if _, err = inspect(file); !errors.Is(err, ErrDamaged) {
			break
		}
	}
	return err
}

func openFile(file string) (*os.File, int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func stateOf(m *mdbfile.File) (State, error) {
	state, err := readState(func(key string) ([]byte, bool, error) { return m.Get(dbMeta, []byte(key)) })
	if errors.Is(err, mdbfile.ErrNoSuchDB) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return state, err
}

// CheckReport is what Check and CheckFile found.
type CheckReport struct {
	SnapshotInfo
	Pages     uint64 // in the file
	FreePages uint64 // listed as reusable
}

// Check verifies the structure of the current generation of the store in dir,
// which no process has open (ErrInUse): every page reachable once, in bounds,
// in key order, counts as recorded, values as this package writes them. The
// file is read, never mapped, so damage is an error (ErrDamaged) and not a
// crash.
func Check(ctx context.Context, dir string) (CheckReport, error) {
	lock, err := lockDir(dir, syscall.LOCK_SH)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check store: %w", err)
	}
	defer lock.Close()
	number, err := readCurrent(dir)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check store: %w", err)
	}
	return CheckFile(ctx, filepath.Join(dir, nameOf(number), dataFile))
}

// CheckFile is Check of one environment file, such as a snapshot.
func CheckFile(ctx context.Context, file string) (CheckReport, error) {
	f, size, err := openFile(file)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check: %w", err)
	}
	defer f.Close()
	report, err := mdbfile.Check(ctx, f, size)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check %s: %w", file, err)
	}
	m, err := mdbfile.Open(f, size)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check %s: %w", file, err)
	}
	state, err := stateOf(m)
	if err == nil {
		err = checkContent(ctx, m, report)
	}
	if err != nil {
		return CheckReport{}, fmt.Errorf("check %s: %w", file, err)
	}
	return CheckReport{
		SnapshotInfo: SnapshotInfo{State: state, Pairs: report.DBs[dbKV].Entries, Size: size, Format: Format},
		Pages:        report.Pages,
		FreePages:    report.FreePages,
	}, nil
}

// checkContent checks what the structure does not show: which databases there
// are, and what their values look like.
func checkContent(ctx context.Context, m *mdbfile.File, report mdbfile.Report) error {
	if _, ok := report.DBs[dbKV]; !ok || len(report.DBs) != 2 {
		return fmt.Errorf("%w: it has %d databases instead of %s and %s", ErrDamaged, len(report.DBs), dbKV, dbMeta)
	}
	if n := report.DBs[dbMeta].Entries; n != 0 && n != 4 {
		return fmt.Errorf("%w: database %s has %d entries, not 4", ErrDamaged, dbMeta, n)
	}
	c, err := m.Cursor(dbKV)
	if err != nil {
		return err
	}
	defer c.Close()
	for n := 0; c.Next(); n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		value, err := c.Value()
		if err != nil {
			return err
		}
		if _, err := untag(value); err != nil {
			return fmt.Errorf("key %q: %w", c.Key(), err)
		}
	}
	return c.Err()
}
