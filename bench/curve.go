package bench

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The picture's measures, in its own units.
const (
	curveWidth, curveHeight = 880, 500
	plotLeft, plotRight     = 76.0, 856.0
	shareTop, shareBottom   = 92.0, 350.0 // the workers
	rateTop, rateBottom     = 382.0, 448.0
)

// curveStyle is the picture's look; curveColours gives it the colours of a page.
const curveStyle = `
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums }
  .title { font-size: 17px; font-weight: 600 }
  .bound, .ending { paint-order: stroke; stroke-width: 4; stroke-linejoin: round }
  .grid, .axis { stroke-width: 1 }
  .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-opacity: .75 }
  .mark { stroke-width: 1.4; stroke-dasharray: 6 4 } .end { stroke-width: 1.2; stroke-dasharray: 2 3 }
  .rate { fill-opacity: .25; stroke-width: 1.4 }
`

// A page does not tell a picture whether it is a light or a dark one, so the
// picture brings a ground of its own, and follows what the reader prefers.
var (
	lightColours = colours{"#ffffff", "#1f2328", "#656d76", "#e3e6ea", "#0969da", "#1a7f37", "#bc4c00", "#8c959f", "#cf222e", "#8250df"}
	darkColours  = colours{"#0d1117", "#e6edf3", "#8d96a0", "#262c34", "#58a6ff", "#3fb950", "#f0883e", "#6e7681", "#ff7b72", "#bc8cff"}
)

type colours struct{ ground, ink, dim, grid, worker, late, slow, killed, least, rate string }

// css is without variables, which some programs that draw SVG do not know.
func (c colours) css(indent string) string {
	var b strings.Builder
	for _, rule := range [][3]string{
		{".ground", "fill", c.ground}, {".bound, .ending", "stroke", c.ground}, {"text", "fill", c.dim}, {".title, .ending", "fill", c.ink}, {".bound", "fill", c.least},
		{".grid", "stroke", c.grid}, {".axis", "stroke", c.dim}, {".worker", "stroke", c.worker}, {".late", "stroke", c.late},
		{".slow", "stroke", c.slow}, {".killed", "stroke", c.killed}, {".mark", "stroke", c.least}, {".end", "stroke", c.ink},
		{".rate", "fill", c.rate}, {".rate", "stroke", c.rate},
	} {
		fmt.Fprintf(&b, "%s%s { %s: %s }\n", indent, rule[0], rule[1], rule[2])
	}
	return b.String()
}

// canvas writes SVG. Numbers have one decimal, so that equal input gives equal
// bytes on every machine.
type canvas struct {
	bytes.Buffer
	seconds float64 // at the right end
}

func (c *canvas) x(seconds float64) float64 {
	return plotLeft + (plotRight-plotLeft)*seconds/c.seconds
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(c, "<line class=%q x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class, x1, y1, x2, y2)
}

func (c *canvas) text(class, anchor string, x, y float64, format string, args ...any) {
	fmt.Fprintf(c, "<text class=%q text-anchor=%q x=\"%.1f\" y=\"%.1f\">%s</text>\n",
		class, anchor, x, y, html.EscapeString(fmt.Sprintf(format, args...)))
}

// Curve draws the run in the middle: how much each worker held over time, and at
// what rate the managers sent. It is an SVG without scripts, and the same for
// the same report.
func (r *SwarmReport) Curve() []byte {
	run := r.MedianRun()
	c := &canvas{seconds: max(r.Least, run.Last) * 1.02}
	for _, n := range run.Nodes {
		for _, s := range n.Curve {
			c.seconds = max(c.seconds, s.At*1.02)
		}
	}
	if c.seconds == 0 {
		c.seconds = 1
	}
	c.seconds *= 1.1 // room for what is written at the right of the last line
	fmt.Fprintf(c, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n<style>%s%s  @media (prefers-color-scheme: dark) {\n%s  }\n</style>\n",
		curveWidth, curveHeight, html.EscapeString(r.title()), curveStyle, lightColours.css("  "), darkColours.css("    "))
	fmt.Fprintf(c, "<rect class=\"ground\" width=\"%d\" height=\"%d\"/>\n", curveWidth, curveHeight)
	c.text("title", "start", plotLeft, 34, "%s", r.title())
	c.text("", "start", plotLeft, 56, "%s", r.outcome(run))
	c.legend(run)
	c.grid()
	c.curves(r, run)
	c.uplink(r, run)
	c.marks(r, run)
	c.WriteString("</svg>\n")
	return c.Bytes()
}

func (r *SwarmReport) title() string {
	s := fmt.Sprintf("%s, %s, %.0f MiB", plural(r.Workers, "empty worker"), plural(r.Managers, "manager"), float64(r.Size)/(1<<20))
	if r.Rate > 0 {
		s += fmt.Sprintf(", links of %g Mbit/s", math.Round(float64(r.Rate)*8/1e4)/100)
	}
	return s
}

func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func (r *SwarmReport) outcome(run *SwarmRun) string {
	s := fmt.Sprintf("last worker complete after %.2f s", run.Last)
	if run.Ratio > 0 {
		s += fmt.Sprintf(", %.3f × T*", run.Ratio)
	}
	s += fmt.Sprintf("; the managers sent %.3f copies", run.EgressPayload)
	if len(r.Runs) > 1 {
		s += fmt.Sprintf(" (the median of %d runs)", len(r.Runs))
	}
	return s
}

// class is how a worker's line is drawn.
func (n *NodeResult) class() string { return cmp.Or(n.Fate, "worker") }

func (c *canvas) legend(run *SwarmRun) {
	x := plotLeft
	for _, class := range []string{"worker", killed, late, slow} {
		i := slices.IndexFunc(run.Nodes, func(n *NodeResult) bool { return n.class() == class })
		if i < 0 {
			continue
		}
		name := map[string]string{"worker": "a worker", killed: "killed on the way", late: "joined late", slow: "at a tenth of the rate"}[class]
		c.line("curve "+class, x, 76, x+22, 76)
		c.text("", "start", x+28, 80, "%s", name)
		x += 28 + 8*float64(len(name)) + 16
	}
}

// grid draws the axes with their units.
func (c *canvas) grid() {
	for share := 0; share <= 100; share += 25 {
		y := shareBottom - (shareBottom-shareTop)*float64(share)/100
		c.line("grid", plotLeft, y, plotRight, y)
		c.text("", "end", plotLeft-8, y+4.5, "%d %%", share)
	}
	step := niceStep(c.seconds, 10)
	for i := 0; float64(i)*step <= c.seconds; i++ {
		x := c.x(float64(i) * step)
		c.line("grid", x, shareTop, x, rateBottom)
		c.text("", "middle", x, rateBottom+18, "%g", math.Round(float64(i)*step*1000)/1000)
	}
	c.line("axis", plotLeft, shareBottom, plotRight, shareBottom)
	c.line("axis", plotLeft, rateBottom, plotRight, rateBottom)
	c.text("", "middle", (plotLeft+plotRight)/2, rateBottom+38, "seconds since the workers were started with nothing")
	c.upright((shareTop+shareBottom)/2, "of the snapshot, verified")
}

func (c *canvas) upright(y float64, text string) {
	fmt.Fprintf(c, "<text text-anchor=\"middle\" transform=\"translate(18 %.1f) rotate(-90)\">%s</text>\n", y, html.EscapeString(text))
}

// niceStep returns the least of 1, 2 and 5 times a power of ten that divides span
// into at most most parts.
func niceStep(span float64, most int) float64 {
	step := math.Pow(10, math.Floor(math.Log10(span/float64(most))))
	for _, f := range []float64{1, 2, 5} {
		if span/(f*step) <= float64(most) {
			return f * step
		}
	}
	return 10 * step
}

func (c *canvas) curves(r *SwarmReport, run *SwarmRun) {
	y := func(done int64) float64 { return shareBottom - (shareBottom-shareTop)*float64(done)/float64(r.Size) }
	// Those that met with something are drawn over the others.
	for _, n := range slices.SortedStableFunc(slices.Values(run.Nodes), func(a, b *NodeResult) int { return cmp.Compare(a.Fate, b.Fate) }) {
		if len(n.Curve) == 0 {
			continue
		}
		fmt.Fprintf(c, "<polyline class=\"curve %s\" points=\"", n.class())
		for i, s := range n.Curve {
			if i > 0 {
				c.WriteByte(' ')
			}
			fmt.Fprintf(c, "%.1f,%.1f", c.x(s.At), y(s.Done))
		}
		c.WriteString("\"/>\n")
		if n.Fate == killed {
			end := n.Curve[len(n.Curve)-1]
			x, y := c.x(end.At), y(end.Done)
			c.line("curve killed", x-5, y-5, x+5, y+5)
			c.line("curve killed", x-5, y+5, x+5, y-5)
		}
	}
}

// uplink draws the rate at which the managers sent, each value over the time
// since the sample before.
func (c *canvas) uplink(r *SwarmReport, run *SwarmRun) {
	const bits = 8 / 1e6
	most := float64(r.ManagerRate) * float64(r.Managers) * bits
	var rates []float64
	for i := 1; i < len(run.Uplink); i++ {
		a, b := run.Uplink[i-1], run.Uplink[i]
		rates = append(rates, float64(b.Done-a.Done)*bits/(b.At-a.At))
	}
	if most == 0 {
		for _, rate := range rates {
			most = max(most, rate)
		}
	}
	c.upright((rateTop+rateBottom)/2, "Mbit/s")
	c.text("", "start", plotLeft+4, rateTop-8, "sent by the managers, headers included")
	if most == 0 {
		return
	}
	c.line("grid", plotLeft, rateTop, plotRight, rateTop)
	c.text("", "end", plotLeft-8, rateTop+4.5, "%.0f", most)
	c.text("", "end", plotLeft-8, rateBottom+4.5, "0")
	if len(rates) == 0 {
		return
	}
	y := func(rate float64) float64 { return rateBottom - (rateBottom-rateTop)*min(rate/most, 1.05) }
	fmt.Fprintf(c, "<path class=\"rate\" d=\"M%.1f,%.1f", c.x(run.Uplink[0].At), rateBottom)
	for i, rate := range rates {
		fmt.Fprintf(c, " V%.1f H%.1f", y(rate), c.x(run.Uplink[i+1].At))
	}
	fmt.Fprintf(c, " V%.1f\"/>\n", rateBottom)
}

// marks draws T* and the last worker's time.
func (c *canvas) marks(r *SwarmReport, run *SwarmRun) {
	if r.Least > 0 {
		x := c.x(r.Least)
		c.line("mark", x, shareTop-6, x, rateBottom)
		c.text("bound", "end", x-5, shareBottom-24, "T* = %.2f s", r.Least)
		c.text("bound", "end", x-5, shareBottom-8, "no protocol can do better")
	}
	x := c.x(run.Last)
	c.line("end", x, shareTop-6, x, rateBottom)
	c.text("ending", "start", x+5, shareBottom-8, "%.2f s", run.Last)
}
