package lmdbstore

import (
	"bytes"
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
func inspect(file string) (state State, format int, err error) {
	f, size, err := openFile(file)
	if err != nil {
		return State{}, 0, err
	}
	defer f.Close()
	m, err := mdbfile.Open(f, size)
	if err == nil && !m.Whole() { // which is sound if nothing uses the pages that it lacks
		_, err = mdbfile.Check(context.Background(), f, size, nil)
	}
	if err != nil {
		return State{}, 0, fmt.Errorf("%s: %w", file, err)
	}
	if state, format, err = stateOf(m); err != nil {
		return State{}, 0, fmt.Errorf("%s: %w", file, err)
	}
	return state, format, nil
}

// inspectLive is inspect of a file to which another process may be writing,
// which can make a sound one look damaged for a moment.
func inspectLive(file string) (format int, err error) {
	const tries = 5
	for range tries {
		if _, format, err = inspect(file); !errors.Is(err, ErrDamaged) {
			break
		}
	}
	return format, err
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

func stateOf(m *mdbfile.File) (State, int, error) {
	state, format, err := readState(func(key string) ([]byte, bool, error) { return m.Get(dbMeta, []byte(key)) })
	if errors.Is(err, mdbfile.ErrNoSuchDB) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return state, format, err
}

// CheckReport is what Check and CheckFile found.
type CheckReport struct {
	SnapshotInfo
	Pages     uint64 // in the file
	FreePages uint64 // listed as reusable
}

// Check verifies the structure of the current generation of the store in dir,
// which no process has open (ErrInUse): every page reachable once, in bounds,
// in key order, counts as recorded, each value as its checksum says, and all
// pairs together as the digest says, unless it is of format 1, which has neither.
// The file is read, never mapped, so damage is an error (ErrDamaged) and not a
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
	m, err := mdbfile.Open(f, size)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check %s: %w", file, err)
	}
	state, format, err := stateOf(m)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check %s: %w", file, err)
	}
	content := content{where: file, values: encoding{plain: format == 1}}
	report, err := mdbfile.Check(ctx, f, size, content.visit)
	if err == nil {
		err = content.finish(report, state, format)
	}
	if err != nil {
		return CheckReport{}, fmt.Errorf("check %s: %w", file, err)
	}
	return CheckReport{
		SnapshotInfo: SnapshotInfo{State: state, Pairs: report.DBs[dbKV].Entries, Size: size, Format: format},
		Pages:        report.Pages,
		FreePages:    report.FreePages,
	}, nil
}

// content checks what the structure of an environment does not show: which
// databases there are, and what is in them.
type content struct {
	where  string // the file
	values encoding
	sum    sum
}

func (c *content) visit(db string, key, raw []byte) error {
	if db != dbKV {
		return nil
	}
	value, err := c.values.open(key, raw)
	if err != nil {
		return &DamageError{c.where, bytes.Clone(key), err}
	}
	c.sum.add(key, value)
	return nil
}

// finish compares all that was visited with the counts and with the state.
func (c *content) finish(report mdbfile.Report, state State, format int) error {
	if _, ok := report.DBs[dbKV]; !ok || len(report.DBs) != 2 {
		return fmt.Errorf("%w: it has %d databases instead of %s and %s", ErrDamaged, len(report.DBs), dbKV, dbMeta)
	}
	if n := report.DBs[dbMeta].Entries; n != 0 && n != uint64(metaEntries(format)) {
		return fmt.Errorf("%w: database %s has %d entries, not %d", ErrDamaged, dbMeta, n, metaEntries(format))
	}
	if format == 1 {
		return nil
	}
	return c.sum.matches(state)
}
