package contender

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// Contender is a program that copies what one host holds to others.
type Contender struct {
	Name string
	// Settings tells how it is run, where that is not its default.
	Settings string

	tools []tool
	race  func(context.Context, *race) error
}

// tool is something that a contender runs, and the Debian package that has it.
type tool struct {
	probe []string // succeeds where the tool is there; of one word: is in the PATH
	pkg   string
}

var all = []*Contender{rsync, aria2, libtorrent, uftp, redis}

// Names returns the names of all contenders.
func Names() (names []string) {
	for _, c := range all {
		names = append(names, c.Name)
	}
	return names
}

// Choose returns the contenders of these names, which are all different.
func Choose(names []string) (chosen []*Contender, err error) {
	for _, name := range names {
		i := slices.IndexFunc(all, func(c *Contender) bool { return c.Name == name })
		switch {
		case i < 0:
			return nil, fmt.Errorf("unknown contender %q: there are %s", name, strings.Join(Names(), ", "))
		case slices.Contains(chosen, all[i]):
			return nil, fmt.Errorf("%s is named twice", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// Missing returns the Debian packages that this machine lacks.
func (c *Contender) Missing(ctx context.Context) (packages []string) {
	for _, t := range c.tools {
		_, err := exec.LookPath(t.probe[0])
		if err == nil && len(t.probe) > 1 {
			err = exec.CommandContext(ctx, t.probe[0], t.probe[1:]...).Run()
		}
		if err != nil && !slices.Contains(packages, t.pkg) {
			packages = append(packages, t.pkg)
		}
	}
	return packages
}

// Site is where a contender runs, and with what.
type Site struct {
	Source *lab.Host
	Sinks  []*lab.Host
	Rate   lab.Rate // of the slowest link on the way from the source; 0 is unlimited
	File   *File
	Dir    string // an empty directory, for the programs' own files
}

// Result is how a contender did.
type Result struct {
	Complete []time.Duration // when each sink had everything, from the start
	CPU      time.Duration   // of all processes, from the start until then
	Payload  int64           // bytes of the file that the source sent; 0 if its program does not tell
}

// Run has the contender distribute the site's file. It returns when all sinks
// hold what the source holds, and its processes have ended.
func (c *Contender) Run(ctx context.Context, s Site) (_ *Result, err error) {
	r := &race{Site: s, complete: make([]time.Duration, len(s.Sinks))}
	defer func() {
		r.end()
		if err != nil {
			err = fmt.Errorf("%s: %w", c.Name, err)
		}
	}()
	for i := range s.Sinks {
		if err := os.MkdirAll(r.sinkDir(i), 0o755); err != nil {
			return nil, err
		}
	}
	if err := c.race(ctx, r); err != nil {
		return nil, err
	}
	return &Result{Complete: r.complete, CPU: r.cpu, Payload: r.payload}, nil
}

// race is one distribution.
type race struct {
	Site
	processes []*process
	began     time.Time
	complete  []time.Duration
	cpu       time.Duration
	payload   int64
}

// sinkDir is where a sink keeps its data.
func (r *race) sinkDir(sink int) string { return filepath.Join(r.Dir, fmt.Sprintf("sink%d", sink+1)) }

// begin starts the clock: the source is ready.
func (r *race) begin() error {
	for _, p := range r.processes {
		var err error
		if p.before, err = p.used(); err != nil {
			return err
		}
	}
	r.began = time.Now()
	return nil
}

// finish calls wait for each sink, at once, until it returns the moment when that
// sink was complete.
func (r *race) finish(ctx context.Context, wait func(ctx context.Context, sink int) (time.Time, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type outcome struct {
		sink int
		at   time.Time
		err  error
	}
	outcomes := make(chan outcome)
	for i := range r.Sinks {
		go func() {
			at, err := wait(ctx, i)
			outcomes <- outcome{i, at, err}
		}()
	}
	var first error
	for range r.Sinks {
		o := <-outcomes
		if o.err != nil && first == nil {
			first = o.err
			cancel(first)
		}
		r.complete[o.sink] = o.at.Sub(r.began)
	}
	if first != nil {
		return first
	}
	for _, p := range r.processes {
		used, err := p.used()
		if err != nil {
			return err
		}
		r.cpu += used - p.before
	}
	return nil
}

// verify compares each sink's file of a name with the source's.
func (r *race) verify(name string) error {
	for i := range r.Sinks {
		if err := r.File.same(filepath.Join(r.sinkDir(i), name)); err != nil {
			return fmt.Errorf("sink %d: %w", i+1, err)
		}
	}
	return nil
}

// end ends all processes.
func (r *race) end() {
	for _, p := range r.processes {
		p.kill()
	}
}

// addresses returns those of the source and the sinks, as text.
func (r *race) addresses() (list []string) {
	for _, h := range append([]*lab.Host{r.Source}, r.Sinks...) {
		list = append(list, h.Addr().String())
	}
	return list
}
