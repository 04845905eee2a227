package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// DefaultScrubRate is how fast Scrub reads unless it is told otherwise, in bytes
// per second: a GiB in two minutes. That takes less than 5 % of two processors
// (decision 11).
const DefaultScrubRate = 8 << 20

// ScrubOptions configure a scrub. The zero value is ready to use.
type ScrubOptions struct {
	// Rate bounds how fast is read, in bytes per second. Default
	// DefaultScrubRate; negative: as fast as it goes.
	Rate int64
	// Progress, if not nil, is called now and then with how much was read. What
	// is free in the file is part of total, in bytes, but is not read.
	Progress func(done, total int64)

	fault func(off int64, n int) error // the disk's, in tests
}

// ScrubReport says what a scrub read. All of it was sound. After an error it says
// only which generation was being read.
type ScrubReport struct {
	State             // at which the environment was read
	Generation uint64 // that was read
	Pairs      uint64 // of the user
	Bytes      int64  // read
	FreePages  uint64 // listed as reusable
	Direct     bool   // the disk was read, and nothing from the page cache
	Took       time.Duration
}

// Scrub reads the whole current generation, at one position, from the disk, and
// verifies it: the structure, as Check does, each pair's checksum, and that the
// digest of all pairs is the one that was kept. Damage is a *DamageError, and so is
// a block that the disk did not return twice running. Reads and writes go on, but
// the pages that writes set free cannot be used again before the scrub ends. If the
// environment is remapped or replaced meanwhile it starts over. The call takes one
// of MaxReaders and 3 MiB of memory, and 32 KiB more for each GiB.
func (s *Store) Scrub(ctx context.Context, o ScrubOptions) (ScrubReport, error) {
	if o.Rate == 0 {
		o.Rate = DefaultScrubRate
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	if !s.working() {
		return ScrubReport{}, ErrClosed
	}
	defer s.work.Done()
	ctx, cancel := s.until(ctx)
	defer cancel()
	for {
		var report ScrubReport
		err := s.with(func(g *generation) (err error) {
			report, err = g.scrub(ctx, o)
			report.Generation = g.number
			return err
		})
		switch {
		case err == nil:
			return report, nil
		case s.stopped.Err() != nil:
			return ScrubReport{}, ErrClosed
		case errors.Is(err, errYield):
			s.options.Logger.Info("scrub starts over: its environment was remapped or replaced")
		default:
			return ScrubReport{Generation: report.Generation}, fmt.Errorf("scrub: %w", err)
		}
	}
}

// scrub is one attempt.
func (g *generation) scrub(ctx context.Context, o ScrubOptions) (ScrubReport, error) {
	if err := g.env.injury.get(); err != nil {
		return ScrubReport{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	var from *disk
	p, err := g.pin(func() { cancel(errYield) }, func(file string) (source, int64, error) {
		var size int64
		var err error
		if from, size, err = openDisk(ctx, file, o.Rate); err == nil {
			from.fault = o.fault
		}
		return from, size, err
	})
	var report ScrubReport
	if err == nil {
		defer p.close()
		report, err = p.scrub(ctx, func(total int64) { o.Progress(from.read.Load(), total) })
	}
	switch {
	case ctx.Err() != nil:
		return ScrubReport{}, context.Cause(ctx)
	case err != nil:
		return ScrubReport{}, g.env.note(damageIn(filepath.Join(g.dir, dataFile), err))
	}
	report.Bytes, report.Direct, report.Took = from.read.Load(), from.isDirect(), time.Since(began)
	return report, nil
}

// scrub verifies everything in one state of an environment. progress is called
// with the bytes that it takes in the file.
func (p *pinned) scrub(ctx context.Context, progress func(total int64)) (ScrubReport, error) {
	state, format, err := stateOf(p.file)
	if err != nil {
		return ScrubReport{}, err
	}
	content := content{where: p.where, values: p.values}
	pairs := 0
	report, err := p.file.Check(ctx, func(db string, key, value []byte) error {
		if pairs++; pairs%4096 == 0 {
			progress(p.file.Size())
		}
		return content.visit(db, key, value)
	})
	if err == nil {
		err = content.finish(report, state, format)
	}
	return ScrubReport{State: state, Pairs: report.DBs[dbKV].Entries, FreePages: report.FreePages}, err
}
