package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/peer"
)

const (
	// fetchRedraw is how often a terminal shows how far a fetch is, and how often
	// it is looked whether there is one.
	fetchRedraw = 200 * time.Millisecond
	// fetchLogged is how often a log says so where there is no terminal.
	fetchLogged = 5 * time.Second
)

// fetchWatch tells people how far a node's fetch of a snapshot is: a line below
// the log on a terminal, otherwise a line of the log now and then.
type fetchWatch struct {
	progress func() (peer.FetchProgress, bool)
	log      *slog.Logger
	footer   *term.Footer // nil: no terminal
	screen   io.Writer

	told time.Time // when the log last said how far one is
}

func (w *fetchWatch) run(ctx context.Context) {
	tick := time.NewTicker(fetchRedraw)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			w.look(now)
		case <-ctx.Done():
			w.show("")
			return
		}
	}
}

// look shows what there is to see now.
func (w *fetchWatch) look(now time.Time) {
	p, ok := w.progress()
	switch {
	case !ok || !p.Running:
		w.show("")
	case w.footer != nil:
		width, _ := term.Size(w.screen)
		w.show(fetchLine(p, width-1, term.Colours(w.screen))) // the cursor's cell stays free
	case now.Sub(*p.Began) >= fetchLogged && now.Sub(w.told) >= fetchLogged:
		w.told = now
		left := slog.Attr{} // nothing, while there is no rate
		if p.SecondsLeft != nil {
			left = slog.Duration("left", seconds(*p.SecondsLeft).Round(time.Second))
		}
		w.log.Info("fetch under way", "done", p.Done, "total", p.Total, "rate", p.Rate, left,
			"from_managers", p.From.Managers.Bytes, "from_own_colo", p.From.OwnColo.Bytes, "from_other_colos", p.From.OtherColos.Bytes)
	}
}

func (w *fetchWatch) show(line string) {
	if w.footer != nil {
		w.footer.Set(line)
	}
}

// leftOf estimates the time to the end; "" while there is no rate.
func leftOf(p peer.FetchProgress) string {
	if p.SecondsLeft == nil {
		return ""
	}
	return term.Left(seconds(*p.SecondsLeft))
}

// fetchLine says how far a fetch is in at most width cells, the less the narrower.
func fetchLine(p peer.FetchProgress, width int, colours bool) string {
	var line, bar string
	for detail := 4; detail >= 0; detail-- {
		line, bar = fetchText(p, detail)
		if utf8.RuneCountInString(line) <= width {
			break
		}
	}
	line = term.Clip(line, width)
	if colours && bar != "" {
		line = strings.Replace(line, bar, term.Green.In(bar), 1)
	}
	return line
}

// fetchText is a fetchLine, with the bar in it, at a level of detail: 0 the share
// and the rate, 1 sources in percent, 2 in bytes and a bar, 3 bytes in all, 4 pieces.
func fetchText(p peer.FetchProgress, detail int) (line, bar string) {
	share := 0.0
	if p.Total > 0 {
		share = float64(p.Done) / float64(p.Total)
	}
	parts := []string{fmt.Sprintf("fetching %3.0f%%", 100*share)}
	if detail >= 2 {
		bar = term.Bar(share, 20)
		parts[0] = fmt.Sprintf("fetching %s %3.0f%%", bar, 100*share)
	}
	if detail >= 3 {
		parts = append(parts, term.Bytes(p.Done)+" of "+term.Bytes(p.Total))
	}
	parts = append(parts, term.Rate(p.Rate))
	if left := leftOf(p); left != "" {
		parts = append(parts, left+" left")
	}
	if detail >= 1 {
		received := max(1, p.From.Managers.Bytes+p.From.OwnColo.Bytes+p.From.OtherColos.Bytes)
		var sources []string
		for _, from := range []struct {
			who string
			peer.Payload
		}{{"managers", p.From.Managers}, {"own colo", p.From.OwnColo}, {"other colos", p.From.OtherColos}} {
			switch {
			case from.Bytes == 0:
			case detail >= 4:
				sources = append(sources, fmt.Sprintf("%s %s (%s)", from.who, term.Bytes(from.Bytes), term.Plural(from.Pieces, "piece")))
			case detail >= 2:
				sources = append(sources, from.who+" "+term.Bytes(from.Bytes))
			default:
				sources = append(sources, fmt.Sprintf("%s %.0f%%", from.who, 100*float64(from.Bytes)/float64(received)))
			}
		}
		if len(sources) > 0 {
			parts = append(parts, strings.Join(sources, ", "))
		}
	}
	return strings.Join(parts, "  "), bar
}
