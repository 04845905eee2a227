package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"sync"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// newLogger returns a logger onto w: JSON, or text, which on a terminal is laid
// out for reading, above a footer.
func newLogger(w io.Writer, level slog.Level, json bool) (*slog.Logger, *term.Footer) {
	o := &slog.HandlerOptions{Level: level}
	switch {
	case json:
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case term.Is(w):
		footer := term.NewFooter(w)
		return slog.New(newConsole(footer, level, term.Colours(w))), footer
	default:
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
}

// hash matches a hash, whose beginning is enough for people.
var hash = regexp.MustCompile(`\b([0-9a-f]{12})[0-9a-f]{20,}\b`)

// console is a slog.Handler for people:
//
//	15:04:05.000 INFO  state changed  from=joining to=bootstrapping
type console struct {
	out     io.Writer
	colours bool
	mu      *sync.Mutex   // guards buf and the order on out
	buf     *bytes.Buffer // what attrs wrote
	attrs   slog.Handler  // formats the attributes, and only them, into buf
}

func newConsole(w io.Writer, level slog.Level, colours bool) *console {
	buf := new(bytes.Buffer)
	return &console{
		out: w, colours: colours, mu: new(sync.Mutex), buf: buf,
		attrs: slog.NewTextHandler(buf, &slog.HandlerOptions{
			Level: level,
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
					return slog.Attr{}
				}
				if s := a.Value.String(); hash.MatchString(s) {
					a.Value = slog.StringValue(hash.ReplaceAllString(s, "$1…"))
				}
				return a
			},
		}),
	}
}

func (c *console) Enabled(ctx context.Context, l slog.Level) bool { return c.attrs.Enabled(ctx, l) }

func (c *console) Handle(ctx context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Reset()
	if err := c.attrs.Handle(ctx, r); err != nil {
		return err
	}
	style := func(s term.Style, text string) string {
		if !c.colours {
			return text
		}
		return s.In(text)
	}
	level := term.Plain
	switch {
	case r.Level >= slog.LevelError:
		level = term.Red
	case r.Level >= slog.LevelWarn:
		level = term.Yellow
	}
	attrs := bytes.TrimSpace(c.buf.Bytes())
	gap := "  "
	if len(attrs) == 0 {
		gap = ""
	}
	_, err := fmt.Fprintf(c.out, "%s %s %s%s%s\n",
		style(term.Dim, r.Time.Format("15:04:05.000")), style(level, fmt.Sprintf("%-5s", r.Level)),
		r.Message, gap, style(term.Dim, string(attrs)))
	return err
}

func (c *console) WithAttrs(attrs []slog.Attr) slog.Handler {
	d := *c
	d.attrs = c.attrs.WithAttrs(attrs)
	return &d
}

func (c *console) WithGroup(name string) slog.Handler {
	d := *c
	d.attrs = c.attrs.WithGroup(name)
	return &d
}
