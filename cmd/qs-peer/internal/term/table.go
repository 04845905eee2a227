package term

import (
	"strings"
	"unicode/utf8"
)

// Cell is one field of a table.
type Cell struct {
	Text  string
	Style Style
}

// Table is rows of cells under a header. Columns whose header begins with '>'
// are aligned to the right.
type Table struct {
	Header []string
	Rows   [][]Cell
}

// widths returns the width of each column.
func (t *Table) widths() []int {
	widths := make([]int, len(t.Header))
	for i, h := range t.Header {
		widths[i] = utf8.RuneCountInString(strings.TrimPrefix(h, ">"))
	}
	for _, row := range t.Rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.Text))
		}
	}
	return widths
}

// Width returns how wide the table wants to be, in cells.
func (t *Table) Width() int {
	sum := 2 * max(0, len(t.Header)-1)
	for _, w := range t.widths() {
		sum += w
	}
	return sum
}

// Lines lays the table out, with colours or without. No line is longer than
// width; 0 means no limit.
func (t *Table) Lines(colours bool, width int) []string {
	right := make([]bool, len(t.Header))
	head := make([]Cell, len(t.Header))
	for i, h := range t.Header {
		h, right[i] = strings.CutPrefix(h, ">")
		head[i] = Cell{h, Dim}
	}
	rows := append([][]Cell{head}, t.Rows...)
	widths := t.widths()
	lines := make([]string, 0, len(rows))
	for _, row := range rows {
		var b strings.Builder
		room := width
		for i, c := range row {
			gap := 2
			if i == 0 {
				gap = 0
			}
			pad := widths[i] - utf8.RuneCountInString(c.Text)
			before, after := gap, pad
			if right[i] {
				before, after = gap+pad, 0
			}
			if i == len(row)-1 {
				after = 0
			}
			text := c.Text
			if width > 0 {
				before = min(before, room)
				text = Clip(text, room-before)
				after = min(after, room-before-utf8.RuneCountInString(text))
				room -= before + utf8.RuneCountInString(text) + after
			}
			if colours {
				text = c.Style.In(text)
			}
			b.WriteString(strings.Repeat(" ", before))
			b.WriteString(text)
			b.WriteString(strings.Repeat(" ", after))
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}
