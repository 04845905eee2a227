package lmdbstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// ErrUnexpected is wrapped by errors about a file that is sound, but not what
// somebody said it is. Such a file was not mapped.
var ErrUnexpected = errors.New("the file is not what it is said to be")

// Expected is what is said of a snapshot file.
type Expected struct {
	SnapshotInfo
	SHA256 [32]byte
}

// Inspect reads what an environment file says it is, its few first pages, without
// mapping it. Whether the rest is as it should be is CheckFile's question, and
// the caller's.
func Inspect(file string) (SnapshotInfo, error) {
	f, size, err := openFile(file)
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer f.Close()
	info, err := inspectInfo(f, size)
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("%s: %w", file, err)
	}
	return info, nil
}

func inspectInfo(f io.ReaderAt, size int64) (SnapshotInfo, error) {
	m, err := mdbfile.Open(f, size)
	if err != nil {
		return SnapshotInfo{}, err
	}
	state, format, err := stateOf(m)
	if err != nil {
		return SnapshotInfo{}, err
	}
	kv, err := m.Stat(dbKV)
	if err != nil && !errors.Is(err, mdbfile.ErrNoSuchDB) {
		return SnapshotInfo{}, err
	}
	return SnapshotInfo{State: state, Pairs: kv.Entries, Size: size, Format: format}, nil
}

// CheckInfo compares what a file says it is with what is said of it.
func (want SnapshotInfo) CheckInfo(got SnapshotInfo) error {
	differs := func(what string, got, want any) error {
		return fmt.Errorf("%w: its %s is %v, and is said to be %v", ErrUnexpected, what, got, want)
	}
	switch {
	case got.Format != want.Format:
		return differs("format", got.Format, want.Format)
	case got.Size != want.Size:
		return differs("size", got.Size, want.Size)
	case got.Dataset != want.Dataset:
		return differs("dataset", got.Dataset, want.Dataset)
	case got.Pos != want.Pos:
		return differs("position", got.Pos, want.Pos)
	case !got.Time.Equal(want.Time):
		return differs("time", got.Time, want.Time)
	case got.Pairs != want.Pairs:
		return differs("number of pairs", got.Pairs, want.Pairs)
	}
	return nil
}

// copyFile is copyFile of a file that has to be what is expected. The copy is
// read while it is written, so that this costs next to no time.
func (want *Expected) copyFile(ctx context.Context, target, source string, progress func(done int64)) error {
	info, err := Inspect(source)
	if err == nil {
		err = want.CheckInfo(info)
	}
	if err != nil {
		return err
	}
	s := startSumming(ctx, target)
	err = copyFile(ctx, target, source, func(done int64) {
		s.upTo(done)
		if progress != nil {
			progress(done)
		}
	})
	sum, sumErr := s.finish()
	switch {
	case err != nil:
		return err
	case sumErr != nil:
		return sumErr
	case sum != want.SHA256:
		return fmt.Errorf("%w: its SHA-256 is %x, and is said to be %x", ErrUnexpected, sum, want.SHA256)
	}
	return nil
}

// summing computes the SHA-256 of a file while another goroutine writes it, from
// what is in memory still.
type summing struct {
	ctx     context.Context
	file    string
	written chan int64 // how much of it is there; closed at the end
	done    chan struct{}
	sum     [32]byte
	err     error
}

func startSumming(ctx context.Context, file string) *summing {
	s := &summing{ctx: ctx, file: file, written: make(chan int64, 1), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.sum, s.err = s.follow()
	}()
	return s
}

// upTo says that the first n bytes are written. It never waits.
func (s *summing) upTo(n int64) {
	select {
	case <-s.written: // it is behind, and hears of all at once
	default:
	}
	s.written <- n
}

// finish returns the SHA-256 of what upTo told of.
func (s *summing) finish() ([32]byte, error) {
	close(s.written)
	<-s.done
	return s.sum, s.err
}

func (s *summing) follow() (sum [32]byte, err error) {
	h := sha256.New()
	var f *os.File
	var at int64
	for n := range s.written {
		if f == nil {
			if f, err = os.Open(s.file); err != nil {
				return sum, err
			}
			defer f.Close()
		}
		for at < n {
			if s.ctx.Err() != nil {
				return sum, s.ctx.Err()
			}
			part, err := io.Copy(h, io.NewSectionReader(f, at, min(copyChunk, n-at)))
			if err == nil && part == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return sum, fmt.Errorf("read %s at byte %d: %w", s.file, at, err)
			}
			at += part
		}
	}
	return [32]byte(h.Sum(nil)), nil
}
