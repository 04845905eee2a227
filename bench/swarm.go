package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/durable"
)

// SwarmOptions say what Swarm does. There are no defaults: the command has them.
type SwarmOptions struct {
	Binary string // of qs-peer
	Dir    string // where the nodes' data is put, in a directory of its own

	Workers, Managers, Colos int
	// Rates of links, in each direction. 0 is unlimited.
	Rate, ManagerRate, Between lab.Rate
	Size                       int64 // about how long the snapshot is, in bytes
	TLS                        bool  // mutual TLS between all nodes, and signed snapshots

	KillFraction float64 // of the workers, killed when all hold half on average
	KillManager  bool    // once every piece is with some worker
	JoinLate     int     // workers that start when the others hold half on average
	Slow         int     // of the workers, at a tenth of Rate

	Runs  int
	Limit time.Duration // of a run

	Against []string // names of contenders that do every run too

	Progress Progress
}

// Progress is told what goes on. Its methods are called from one goroutine.
type Progress interface {
	// Step says what begins now.
	Step(what string)
	// Advance says how far the workers of this step are, from 0 to 1 each.
	Advance(done []float64)
	// Result says what came of this step.
	Result(what string)
}

// OptionError is an option that makes no sense, alone or with the others.
type OptionError struct{ Flag, Reason string }

func (e *OptionError) Error() string { return "--" + e.Flag + ": " + e.Reason }

func wrong(flag, format string, args ...any) error {
	return &OptionError{flag, fmt.Sprintf(format, args...)}
}

const (
	maxWorkers = 200
	maxNodes   = lab.MaxHosts
	leastSize  = 1 << 20
	slowFactor = 10
)

// killed is how many workers are to be killed.
func (o *SwarmOptions) killed() int {
	if o.KillFraction == 0 {
		return 0
	}
	return max(1, int(o.KillFraction*float64(o.Workers)+0.5))
}

// Validate returns an *OptionError for what can not be done anywhere, and errors
// of other types for what this machine lacks.
func (o *SwarmOptions) Validate() error {
	switch {
	case o.Workers < 1 || o.Workers > maxWorkers:
		return wrong("workers", "%d: want 1 to %d", o.Workers, maxWorkers)
	case o.Managers < 1 || o.Managers+o.Workers+o.JoinLate > maxNodes:
		return wrong("managers", "%d: want at least 1, and at most %d nodes in all", o.Managers, maxNodes)
	case o.Colos < 1 || o.Colos > o.Workers:
		return wrong("colos", "%d: want 1 to as many as there are workers, %d", o.Colos, o.Workers)
	case o.Rate < 0 || o.ManagerRate < 0 || o.Between < 0:
		return wrong("rate", "negative")
	case o.Between > 0 && o.Colos < 2:
		return wrong("intercolo-rate", "there is only one colo; give --colos 2 or more")
	case o.Size < leastSize:
		return wrong("size", "%d bytes: want at least 1MiB", o.Size)
	case !(o.KillFraction >= 0 && o.KillFraction < 1) || (o.KillFraction > 0 && o.killed() >= o.Workers):
		return wrong("kill-fraction", "%g of %d workers: want 0 to less than 1, so that one of them survives", o.KillFraction, o.Workers)
	case o.JoinLate < 0:
		return wrong("join-late", "%d: want 0 or more", o.JoinLate)
	case o.Slow < 0 || o.Slow >= o.Workers:
		return wrong("slow", "%d of %d workers: want 0 to all but one, who the others are compared by", o.Slow, o.Workers)
	case o.Slow > 0 && o.Rate == 0:
		return wrong("slow", "without a --rate there is no tenth of it")
	case o.Slow > 0 && (o.KillFraction > 0 || o.KillManager || o.JoinLate > 0):
		return wrong("slow", "is measured against a run without slow workers: combine it with no other mishap")
	case o.Runs < 1:
		return wrong("runs", "%d: want at least 1", o.Runs)
	case o.Limit <= 0:
		return wrong("limit", "%v: want more than 0", o.Limit)
	}
	if least := o.all().Least(); least.Time > o.Limit {
		return wrong("limit", "%v is too short: at these rates no protocol needs less than %v (%s); raise --limit or --rate, or make --size smaller",
			o.Limit, least.Time.Round(time.Second/10), least.Formula)
	}
	if err := o.validateAgainst(); err != nil {
		return err
	}
	return o.room()
}

// room refuses a directory that will not hold the data: each node has its
// snapshot and the store that it opens, a manager its log besides.
func (o *SwarmOptions) room() error {
	if st, err := os.Stat(o.Dir); err != nil || !st.IsDir() {
		return wrong("dir", "%s is no directory", o.Dir)
	}
	need := o.Size * int64(2*(o.Workers+o.JoinLate)+4*o.Managers)
	if have := durable.FreeSpace(o.Dir); have < need {
		return wrong("dir", "%s has room for %d MiB, and %d nodes with %d MiB each need %d MiB; free some, give another --dir, fewer --workers or a smaller --size",
			o.Dir, have>>20, o.Workers+o.JoinLate+o.Managers, o.Size>>20, need>>20)
	}
	return nil
}

// all is the problem of all workers that are there from the start.
func (o *SwarmOptions) all() *Fluid { return o.fluid(o.Size, func(int) bool { return true }) }

// fluid is the problem of those workers that count, numbered from 0.
func (o *SwarmOptions) fluid(size int64, counts func(worker int) bool) *Fluid {
	f := &Fluid{Size: size, Managers: slices.Repeat([]lab.Rate{o.ManagerRate}, o.Managers),
		Colos: make([][]lab.Link, o.Colos), Between: o.Between}
	for w := range o.Workers {
		if counts(w) {
			c := o.coloOf(w)
			f.Colos[c] = append(f.Colos[c], o.link(w))
		}
	}
	return f
}

// coloOf deals workers out to colos in turn.
func (o *SwarmOptions) coloOf(worker int) int { return worker % o.Colos }

// link gives the last workers the slow links. Those that join late have numbers
// from Workers on.
func (o *SwarmOptions) link(worker int) lab.Link {
	r := o.Rate
	if worker < o.Workers && worker >= o.Workers-o.Slow {
		r /= slowFactor
	}
	return lab.Link{Up: r, Down: r}
}

// dies says whether a worker is one of those to be killed, which are spread over
// the colos.
func (o *SwarmOptions) dies(worker int) bool { return worker < o.killed() }

// Swarm measures how fast workers that own nothing get a snapshot from managers
// and each other: real processes, each in a network namespace of its own, over
// links whose rates the kernel holds. It calls Validate first.
func Swarm(ctx context.Context, o SwarmOptions) (_ *SwarmReport, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := lab.Permitted(); err != nil {
		return nil, err
	}
	if _, err := Clean(o.Dir); err != nil {
		return nil, err
	}
	dir, err := newScratch(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	var authority *ca.Authority
	if o.TLS {
		if authority, err = ca.Init(filepath.Join(dir, "ca"), ca.Options{TrustDomain: "bench.internal"}); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(dir, "managers")
	snap, err := prepare(ctx, &o, data, authority)
	if err != nil {
		return nil, fmt.Errorf("prepare the managers: %w", err)
	}
	report := newSwarmReport(&o, snap.Size)
	rivals, err := newRivals(ctx, &o, filepath.Join(dir, "contenders"), snap.Size)
	if err != nil {
		return nil, fmt.Errorf("prepare the contenders: %w", err)
	}
	for i := range o.Runs {
		if o.Slow > 0 {
			o.Progress.Step(fmt.Sprintf("run %d of %d, without slow workers", i+1, o.Runs))
			without := o
			without.Workers, without.Slow = o.Workers-o.Slow, 0
			without.Colos = min(o.Colos, without.Workers)
			run, err := measure(ctx, &without, data, authority, snap)
			if err != nil {
				return nil, err
			}
			o.Progress.Result(run.String())
			report.Without = append(report.Without, run)
		}
		o.Progress.Step(fmt.Sprintf("run %d of %d", i+1, o.Runs))
		run, err := measure(ctx, &o, data, authority, snap)
		if err != nil {
			return nil, err
		}
		o.Progress.Result(run.String())
		report.Runs = append(report.Runs, run)
		if err := rivals.run(ctx, fmt.Sprintf("run %d of %d", i+1, o.Runs)); err != nil {
			return nil, err
		}
	}
	report.Against = rivals.summarise()
	report.summarise()
	return report, nil
}
