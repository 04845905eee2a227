package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/bench/contender"
	"github.com/qs-peer/qs-peer/bench/lab"
)

// silent is told what goes on and keeps the results.
type silent struct{ results []string }

func (*silent) Step(string)            {}
func (*silent) Advance([]float64)      {}
func (s *silent) Result(result string) { s.results = append(s.results, result) }

// A contender that fails has no figures, and the bench goes on; one that is not
// installed does not run.
func TestRivalsFail(t *testing.T) {
	if err := lab.Permitted(); err != nil {
		t.Skip(err)
	}
	programs := t.TempDir()
	t.Setenv("PATH", programs)
	if err := os.WriteFile(filepath.Join(programs, "rsync"), []byte("#!/bin/sh\necho cannot\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	o, told := plain(t), &silent{}
	o.Workers, o.Against, o.Progress = 2, []string{"rsync", "aria2"}, told
	v, err := newRivals(t.Context(), &o, o.Dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.run(t.Context(), "run"); err != nil {
			t.Fatal(err)
		}
	}
	reports := v.summarise()
	if r := reports[0]; len(r.Runs) != 0 || len(r.Failures) != 2 || !strings.Contains(r.Failures[0], "saying:\ncannot") || r.Skip() != "failed" {
		t.Errorf("of rsync, which fails, is reported %+v", r)
	}
	if r := reports[1]; r.Skip() != "skipped: apt-get install aria2" || len(r.Failures) != 0 {
		t.Errorf("of aria2, which is not there, is reported %+v", r)
	}
	if len(told.results) != 3 {
		t.Errorf("was told %q", told.results)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "rsync")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is left: %v", err)
	}

	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if err := v.run(ctx, "run"); !errors.Is(err, over) {
		t.Errorf("when all is over, it ends with %v", err)
	}
}

func TestContenderFigures(t *testing.T) {
	o := plain(t)
	v := &rivals{o: &o, file: &contender.File{Size: 12.5e6}}
	got := v.figures(&contender.Result{Complete: []time.Duration{4 * time.Second, 2 * time.Second, 3 * time.Second}, CPU: 3 * time.Second, Payload: 25e6}, 26e6)
	want := ContenderFigures{First: 2, Middle: 3, Last: 4, Ratio: 4, EgressPayload: 2, EgressWire: 2.08, CPU: 80}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	o.Rate, o.ManagerRate, o.Between = 3, 0, 2
	if r := o.slowest(); r != 2 {
		t.Errorf("the slowest link has %d", r)
	}
	o.Rate, o.Between = 0, 0
	if r := o.slowest(); r != 0 {
		t.Errorf("without rates the slowest link has %d", r)
	}
}
