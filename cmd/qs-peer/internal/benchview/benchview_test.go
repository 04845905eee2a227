package benchview

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/bench"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func report(runs int) *bench.SwarmReport {
	f := bench.SwarmFigures{First: 1, Middle: 2, Last: 3, Ratio: 1.5, Serving: 4, EgressPayload: 1.001, EgressUseful: 1, EgressWire: 1.05,
		Into: []float64{1.01, 1.02}, IntoWire: []float64{1.11, 1.12}, CPU: 2.5, Busy: 0.75, Others: 0.1, Anon: 1 << 20, RSS: 2 << 20,
		ManagerAnon: 3 << 20, ManagerRSS: 4 << 20, Wasted: 5}
	r := &bench.SwarmReport{Workers: 8, Managers: 2, Colos: 2, Rate: 12.5e6, ManagerRate: 25e6, Between: 2.5e6, Burst: 69216,
		Size: 256 << 20, TLS: true, Dir: bench.MemoryDir, Least: 2, Formula: "F/l", Median: f, Worst: f}
	for range runs {
		r.Runs = append(r.Runs, &bench.SwarmRun{SwarmFigures: f})
	}
	return r
}

func printed(t *testing.T, r *bench.SwarmReport) string {
	t.Helper()
	var out bytes.Buffer
	if err := PrintSwarm(&out, r); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPrintSwarm(t *testing.T) {
	const want = `8 empty workers in 2 colos, 2 managers, a snapshot of 256.0 MiB
  links    workers 100mbit, managers 200mbit, between colos 20mbit, each way, by tbf (bucket 67.6 KiB)
  peers    mutual TLS 1.3, snapshots and log signed, cubic, 16 frames of 1,514 bytes at a time
  data     in /dev/shm, which is memory: these machines would all share one disk
  T*       2.00s = F/l; the headers of frames alone make it 2.09s

                          run 1
first complete            1.00s
median complete           2.00s
last complete             3.00s
last / T*                 1.500
last serving              4.00s
managers sent, copies     1.001
  of use to workers       1.000
  frames                  1.050
into colo 1, copies       1.010
  frames                  1.110
into colo 2, copies       1.020
  frames                  1.120
CPU-s per GB delivered     2.50
processors busy             75%
  not by nodes              10%
worker: RssAnon, peak   1.0 MiB
worker: VmHWM           2.0 MiB
manager: RssAnon, peak  3.0 MiB
manager: VmHWM          4.0 MiB
wasted, all workers         5 B
`
	if got := printed(t, report(1)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// What happened to nodes is said, and the figures that are about it.
func TestPrintMishaps(t *testing.T) {
	for _, c := range []struct {
		change func(*bench.SwarmReport)
		want   []string
		not    []string
	}{
		{func(r *bench.SwarmReport) { r.Killed = 2 }, []string{"  2 workers killed when"}, nil},
		{func(r *bench.SwarmReport) { r.ManagerKilled = true }, []string{"  all managers killed when"}, nil},
		{func(r *bench.SwarmReport) { r.Late = 1 }, []string{"  1 worker more joined", "late, of its own F/d"}, nil},
		{func(r *bench.SwarmReport) { r.Slow = 1 }, []string{"  1 worker at a tenth", "others / others without it", "slow one complete"}, nil},
		{func(r *bench.SwarmReport) { r.Colos = 1 }, nil, []string{"into colo"}},
		{func(r *bench.SwarmReport) { r.Rate, r.ManagerRate, r.Between, r.Least = 0, 0, 0, 0 }, []string{"links    unlimited"}, []string{"T*", "tbf"}},
		{func(r *bench.SwarmReport) { r.Dir = "/data" }, []string{"data     in /data\n"}, []string{"memory"}},
	} {
		r := report(2)
		c.change(r)
		got := printed(t, r)
		for _, text := range append(c.want, "median  ", "run 2") {
			if !strings.Contains(got, text) {
				t.Errorf("%q is missing:\n%s", text, got)
			}
		}
		for _, text := range c.not {
			if strings.Contains(got, text) {
				t.Errorf("%q is there:\n%s", text, got)
			}
		}
	}
	if got := printed(t, report(20)); strings.Contains(got, "run 1") || !strings.Contains(got, "worst") {
		t.Errorf("of many runs only the median and the worst are shown, not\n%s", got)
	}
}

// Where there is no terminal, a step is a line, and what came of it another.
func TestProgressInAPipe(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(context.Background(), &out)
	p.Step("run 1 of 2")
	p.Advance([]float64{0.5, 1})
	p.Result("done")
	p.Step("run 2 of 2")
	p.Close()
	p.Close()
	if got, want := out.String(), "run 1 of 2\nrun 1 of 2: done\nrun 2 of 2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Contenders and we are rows of one table; what there is no figure of is said.
func TestPrintAgainst(t *testing.T) {
	f := bench.ContenderFigures{First: 10, Middle: 20, Last: 30, Ratio: 15, EgressPayload: 8, EgressWire: 8.4, CPU: 1.25}
	silent := f
	silent.EgressPayload = 0
	r := report(2)
	r.Against = []*bench.ContenderReport{
		{Name: "rsync", Settings: "as it comes", Runs: []bench.ContenderFigures{f, f}, Median: f, Worst: f},
		{Name: "uftp", Settings: "all at once", Runs: []bench.ContenderFigures{silent}, Median: silent, Worst: silent, Failures: []string{"uftp: over\nand out"}},
		{Name: "aria2", Settings: "not at all", Packages: []string{"aria2"}},
		{Name: "redis", Settings: "in vain", Failures: []string{"one", "two"}},
	}
	const want = `
against others: medians and worst, copies of the file that left the source

         median complete    last   worst  last / T*   worst  source sent  in frames  CPU-s/GB
qs-peer            2.00s   3.00s   3.00s      1.500   1.500        1.001      1.050      2.50
rsync             20.00s  30.00s  30.00s     15.000  15.000        8.000      8.400      1.25
uftp              20.00s  30.00s  30.00s     15.000  15.000      unknown      8.400      1.25  1 of 2 runs failed
aria2                  -       -       -          -       -            -          -         -  skipped: apt-get install aria2
redis                  -       -       -          -       -            -          -         -  failed

  rsync       as it comes
  uftp        all at once
              failed: uftp: over
              and out
  aria2       not at all
  redis       in vain
              failed: one
              failed: two
`
	if got := printed(t, r); !strings.HasSuffix(got, want) {
		t.Errorf("got\n%s\nwant at its end\n%s", got, want)
	}
	r.Least = 0
	if got := printed(t, r); strings.Contains(got, "T*") || !strings.Contains(got, "rsync             20.00s  30.00s  30.00s        8.000") {
		t.Errorf("without rates it prints\n%s", got)
	}
}
