package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// line is a worker's curve from start to a full copy.
func straight(from, to float64, size int64) []Sample {
	const n = 10
	var s []Sample
	for i := range n + 1 {
		s = append(s, Sample{At: from + (to-from)*float64(i)/n, Done: size * int64(i) / n})
	}
	return s
}

func curveReport() *SwarmReport {
	const size = 64 << 20
	run := func(last float64) *SwarmRun {
		r := &SwarmRun{SwarmFigures: SwarmFigures{First: 6, Last: last, Ratio: last / 5.4, EgressPayload: 1.003}}
		for i := range 4 {
			r.Nodes = append(r.Nodes, &NodeResult{Name: "w", Curve: straight(0, last-0.1*float64(i), size)})
		}
		dead := straight(0, 6, size)[:5]
		r.Nodes = append(r.Nodes, &NodeResult{Name: "k", Fate: killed, Curve: dead}, &NodeResult{Name: "l", Fate: late, Curve: straight(3, 9, size)},
			&NodeResult{Name: "s", Fate: slow, Curve: straight(0, 12, size)}, &NodeResult{Name: "never", Fate: killed})
		for i := range 25 {
			r.Uplink = append(r.Uplink, Sample{At: float64(i) / 4, Done: int64(i) * 12.5e6 / 4})
		}
		return r
	}
	return &SwarmReport{Workers: 7, Managers: 1, Colos: 1, Rate: 100e6 / 8, ManagerRate: 100e6 / 8, Size: size, Least: 5.37,
		Runs: []*SwarmRun{run(7), run(6.2), run(6.5)}}
}

// The picture is the same to the byte, well formed, of no scripts, and of the run
// in the middle.
func TestCurve(t *testing.T) {
	const golden = "testdata/curve.svg"
	got := curveReport().Curve()
	if *update {
		check(t, os.WriteFile(golden, got, 0o644))
	}
	want, err := os.ReadFile(golden)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("not as in %s; look at both, and run the test with -update if it is as it should be", golden)
	}
	wellFormed(t, got)
	for _, part := range []string{"6.50 s", "T* = 5.37 s", "the median of 3 runs", "prefers-color-scheme: dark", "killed on the way", "joined late", "at a tenth"} {
		if !strings.Contains(string(got), part) {
			t.Errorf("%q is missing", part)
		}
	}
	if strings.Contains(string(got), "<script") || strings.Contains(string(got), "NaN") || strings.Contains(string(got), "Inf") {
		t.Error("it has a script, or a number that is none")
	}
}

// A report that lacks nearly everything is drawn all the same.
func TestCurveOfLittle(t *testing.T) {
	r := &SwarmReport{Workers: 1, Managers: 1, Size: 1 << 20, Runs: []*SwarmRun{{Nodes: []*NodeResult{{Name: "w1"}}, Uplink: []Sample{{}}}}}
	got := r.Curve()
	wellFormed(t, got)
	if strings.Contains(string(got), "NaN") || strings.Contains(string(got), "Inf") {
		t.Errorf("a number that is none:\n%s", got)
	}
}

func wellFormed(t *testing.T, svg []byte) {
	t.Helper()
	dec := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestNiceStep(t *testing.T) {
	for _, c := range []struct {
		span float64
		want float64
	}{{0.9, 0.1}, {1, 0.1}, {1.1, 0.2}, {7, 1}, {12, 2}, {25, 5}, {60, 10}, {300, 50}, {0.003, 0.0005}} {
		if got := niceStep(c.span, 10); got < c.want*0.999 || got > c.want*1.001 {
			t.Errorf("%g in at most 10 parts: %g, want %g", c.span, got, c.want)
		}
	}
}
