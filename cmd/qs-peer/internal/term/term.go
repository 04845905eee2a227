// Package term is how the commands look on a terminal: whether there is one, its
// colours and bars, aligned tables, and numbers for people.
package term

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// Is reports whether w is a terminal that understands escape sequences.
func Is(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// Size returns the terminal's size, 80 × 24 when w is none or does not tell.
func Size(w io.Writer) (width, height int) {
	if f, ok := w.(*os.File); ok {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
			return width, height
		}
	}
	return 80, 24
}

// Style is a colour, as an SGR parameter.
type Style string

const (
	Plain  Style = ""
	Bold   Style = "1"
	Dim    Style = "2"
	Red    Style = "31"
	Green  Style = "32"
	Yellow Style = "33"
	Blue   Style = "34"
)

// Colours reports whether w should get colours: a terminal, unless NO_COLOR is
// set (no-color.org).
func Colours(w io.Writer) bool { return Is(w) && os.Getenv("NO_COLOR") == "" }

// In returns text in a style.
func (s Style) In(text string) string {
	if s == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// Bar returns a progress bar of width cells, in eighths of a cell.
func Bar(fraction float64, width int) string {
	eighths := int(min(max(fraction, 0), 1) * float64(width*8))
	full, part := eighths/8, eighths%8
	s := strings.Repeat("█", full)
	if part > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[part-1])
		full++
	}
	return s + strings.Repeat("░", width-full)
}

// Bytes returns n bytes as people read them: 1.5 MiB.
func Bytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n)/1024, 0
	for v >= 999.95 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// Count returns n with thousands separated: 1,234,567.
func Count[T ~int | ~int64 | ~uint64](n T) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Plural returns "1 pair" or "2 pairs".
func Plural[T ~int | ~int64 | ~uint64](n T, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return Count(n) + " " + noun + "s"
}

// Duration returns d with the three digits that matter: 1.23s, 45.7ms.
func Duration(d time.Duration) string {
	unit := time.Duration(1)
	for unit <= d/1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}

// Left returns a time that is left as people estimate it: 12s, 3m05s, 2h10m, 3d.
func Left(d time.Duration) string {
	switch s := int64((d + time.Second - 1) / time.Second); {
	case s < 60:
		return fmt.Sprintf("%ds", max(s, 0))
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 100*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	default:
		return fmt.Sprintf("%dd", s/(24*3600))
	}
}

// Rate returns bytes per second as people read them.
func Rate(n int64) string { return Bytes(n) + "/s" }

// Clip cuts text to width cells.
func Clip(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "…"
}
