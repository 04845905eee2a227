package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// column is one of the status table's.
type column struct {
	title string
	cell  func(client.Member) term.Cell
}

// layout is what the table shows of the fleet. What does not fit is left out.
type layout struct {
	self     string
	fetching bool            // somebody fetches
	bars     bool            // beside the states of those who do
	pieces   bool            // beside the bytes
	short    bool            // titles
	hidden   map[string]bool // columns, by title
}

const (
	titleRole     = "ROLE"
	titleColo     = "COLO"
	titleApplied  = ">APPLIED"
	titleLag      = ">LAG"
	titleSnapshot = ">SNAPSHOT"
	titleRate     = ">RATE"
	titleLeft     = ">LEFT"
	titleManagers = ">FROM MANAGERS"
	titleOwn      = ">OWN COLO"
	titleOthers   = ">OTHER COLOS"
	titleVersion  = "VERSION"
)

var shortTitles = map[string]string{titleManagers: ">MANAGERS", titleOthers: ">OTHERS"}

// What is left out on a narrow terminal, the first first: while somebody fetches,
// that is what people watch.
var (
	spareFetching = []func(*layout){
		hide(titleVersion), hide(titleSnapshot), hide(titleApplied), hide(titleLag),
		func(l *layout) { l.pieces = false }, func(l *layout) { l.short = true },
		hide(titleRole), func(l *layout) { l.bars = false }, hide(titleColo),
	}
	spareIdle = []func(*layout){
		hide(titleVersion), func(l *layout) { l.short = true }, hide(titleSnapshot),
		hide(titleManagers, titleOwn, titleOthers), hide(titleColo), hide(titleRole),
	}
)

func hide(titles ...string) func(*layout) {
	return func(l *layout) {
		for _, title := range titles {
			l.hidden[title] = true
		}
	}
}

// statusTable lays some of the fleet's members out for a terminal of a width; 0:
// no limit.
func statusTable(s *client.Status, members []client.Member, width int) *term.Table {
	l := layout{self: s.Self, bars: true, hidden: map[string]bool{}}
	colos, fromOthers := map[string]bool{}, false
	for _, m := range s.Members {
		l.fetching = l.fetching || m.Fetching != ""
		colos[m.Colo] = true
		fromOthers = fromOthers || m.BytesFromOtherColos > 0
	}
	l.pieces = l.fetching
	l.hidden[titleRate], l.hidden[titleLeft] = !l.fetching, !l.fetching
	l.hidden[titleOthers] = len(colos) < 2 && !fromOthers
	spare := spareIdle
	if l.fetching {
		spare = spareFetching
	}
	t := l.table(members)
	for _, leaveOut := range spare {
		if width == 0 || t.Width() <= width {
			break
		}
		leaveOut(&l)
		t = l.table(members)
	}
	return t
}

func (l *layout) table(members []client.Member) *term.Table {
	columns := slices.DeleteFunc(l.columns(), func(c column) bool { return l.hidden[c.title] })
	t := &term.Table{}
	for _, c := range columns {
		title := c.title
		if short := shortTitles[title]; l.short && short != "" {
			title = short
		}
		if c.title == titleManagers && l.pieces {
			title += " (PIECES)"
		}
		t.Header = append(t.Header, title)
	}
	for _, m := range members {
		var row []term.Cell
		for _, c := range columns {
			row = append(row, c.cell(m))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (l *layout) columns() []column {
	plain := func(title string, text func(client.Member) string) column {
		return column{title, func(m client.Member) term.Cell { return term.Cell{Text: text(m)} }}
	}
	from := func(title string, count func(client.Member) (int64, uint64)) column {
		return plain(title, func(m client.Member) string {
			bytes, pieces := count(m)
			if l.pieces {
				return fmt.Sprintf("%s (%s)", term.Bytes(bytes), term.Count(pieces))
			}
			return term.Bytes(bytes)
		})
	}
	return []column{
		{"NAME", l.nameCell},
		plain(titleRole, func(m client.Member) string {
			if m.Writer {
				return "writer"
			}
			return m.Role
		}),
		plain(titleColo, func(m client.Member) string { return m.Colo }),
		{"STATE", l.stateCell},
		plain(titleApplied, func(m client.Member) string { return term.Count(m.AppliedSeq) }),
		{titleLag, lagCell},
		plain(titleSnapshot, func(m client.Member) string { return dash(term.Count(m.SnapshotSeq), m.SnapshotSeq == 0) }),
		plain(titleRate, func(m client.Member) string { return dash(term.Rate(m.Rate), m.Fetching == "") }),
		plain(titleLeft, func(m client.Member) string {
			if m.SecondsLeft == nil {
				return "-"
			}
			return term.Left(seconds(*m.SecondsLeft))
		}),
		from(titleManagers, func(m client.Member) (int64, uint64) { return m.BytesFromManagers, m.PiecesFromManagers }),
		from(titleOwn, func(m client.Member) (int64, uint64) { return m.BytesFromOwnColo, m.PiecesFromOwnColo }),
		from(titleOthers, func(m client.Member) (int64, uint64) { return m.BytesFromOtherColos, m.PiecesFromOtherColos }),
		{titleVersion, func(m client.Member) term.Cell { return term.Cell{Text: m.Version, Style: term.Dim} }},
	}
}

func (l *layout) nameCell(m client.Member) term.Cell {
	if m.Name == l.self {
		return term.Cell{Text: m.Name + " *", Style: term.Bold}
	}
	return term.Cell{Text: m.Name}
}

// stateCell is a member's state, and how far it is while it fetches.
func (l *layout) stateCell(m client.Member) term.Cell {
	c := term.Cell{Text: m.State, Style: stateStyle(m.State)}
	progress := m.Progress
	switch {
	case m.FetchTotal > 0:
		progress = float64(m.FetchDone) / float64(m.FetchTotal)
	case m.State != "bootstrapping" && m.State != "repairing":
		return c
	}
	if l.bars {
		c.Text += " " + term.Bar(progress, 10)
	}
	c.Text += fmt.Sprintf(" %3.0f%%", 100*progress)
	return c
}

func stateStyle(state string) term.Style {
	switch state {
	case "serving":
		return term.Green
	case "joining", "bootstrapping", "catching-up":
		return term.Yellow
	case "quarantined", "repairing", "failed":
		return term.Red
	}
	return term.Dim
}

func lagCell(m client.Member) term.Cell {
	if m.LagEntries == 0 {
		return term.Cell{Text: "0"}
	}
	text := term.Count(m.LagEntries)
	if m.LagSeconds > 0 {
		text += " (" + term.Duration(seconds(m.LagSeconds)) + ")"
	}
	return term.Cell{Text: text, Style: term.Yellow}
}

func dash(text string, none bool) string {
	if none {
		return "-"
	}
	return text
}

// watchFirst puts those first whom somebody watches a fleet for: the node that was
// asked, then those that do not simply serve.
func watchFirst(members []client.Member, self string) []client.Member {
	rank := func(m client.Member) int {
		switch {
		case m.Name == self:
			return 0
		case m.Fetching != "" || m.State != "serving" && m.State != "left":
			return 1
		default:
			return 2
		}
	}
	members = slices.Clone(members)
	slices.SortStableFunc(members, func(a, b client.Member) int { return cmp.Compare(rank(a), rank(b)) })
	return members
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// fetchSummary tells in one line what all fetches together do; it is empty when
// there is none.
func fetchSummary(s *client.Status) string {
	var n uint64
	var done, total, rate int64
	var left float64
	for _, m := range s.Members {
		if m.Fetching == "" {
			continue
		}
		n++
		done, total, rate = done+m.FetchDone, total+m.FetchTotal, rate+m.Rate
		if m.SecondsLeft != nil {
			left = max(left, *m.SecondsLeft)
		}
	}
	if n == 0 || total == 0 {
		return ""
	}
	who := "1 node fetches"
	if n > 1 {
		who = term.Plural(n, "node") + " fetch"
	}
	parts := []string{fmt.Sprintf("%s: %.0f%%", who, 100*float64(done)/float64(total))}
	if rate > 0 {
		parts = append(parts, term.Rate(rate), term.Left(seconds(left))+" left")
	}
	return strings.Join(parts, ", ")
}
