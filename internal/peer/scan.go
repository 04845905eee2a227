package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/lmdbstore"
)

// scanLimit bounds how long a scan holds its read transaction: what is overwritten
// meanwhile cannot be reused, so the file grows.
const scanLimit = 15 * time.Minute

var errScanLimit = errors.New("the scan took longer than " + scanLimit.String() +
	", for which one state can be kept: scan in parts (prefix, start, end), or read faster")

// getScan streams pairs from one read transaction. A slow client gets what pace allows,
// and scanLimit for the whole, so that none holds the transaction for long.
func (a *api) getScan(w *response, r *http.Request) {
	rng, inBase64, err := scanParams(r.URL.RawQuery)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	holder := w.caller.holder()
	if err := a.access.scans.take(r.Context(), holder, 1, placePatience); err != nil {
		a.fail(w, r, err)
		return
	}
	defer a.access.scans.give(holder, 1)
	ctx, cancel := context.WithTimeoutCause(r.Context(), scanLimit, errScanLimit)
	defer cancel()
	if err := w.lease.take(ctx, writeChunk); err != nil {
		a.fail(w, r, err)
		return
	}
	// The client keeps the transaction waiting for longer than this does.
	rng.Room = func(n int) error { return w.lease.take(ctx, int64(n)) }
	out := &lineWriter{w: w, base64: inBase64}
	out.buf = bufio.NewWriterSize(out, writeChunk)
	err = a.reads.view(func(tx *lmdbstore.Tx) error {
		state, err := tx.State()
		if err != nil {
			return err
		}
		w.Header().Set(posHeader, state.Pos.String())
		return tx.Scan(rng, func(key, value []byte) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return out.pair(key, value)
		})
	})
	switch {
	case err == nil:
		w.Header().Set("Content-Type", jsonLines)
		if err := out.buf.Flush(); err != nil {
			panic(http.ErrAbortHandler)
		}
	case !out.begun:
		w.Header().Del(posHeader)
		a.fail(w, r, err)
	default:
		// Too late for a status: a last line that says why, and no clean end.
		_ = json.NewEncoder(out.buf).Encode(newErrorBody(err))
		_ = out.buf.Flush()
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

const jsonLines = "application/jsonl"

// lineWriter writes pairs as JSON Lines and knows whether any reached the
// client.
type lineWriter struct {
	w      http.ResponseWriter
	base64 bool
	begun  bool
	buf    *bufio.Writer
}

func (l *lineWriter) pair(key, value []byte) error {
	text := l.text
	if l.base64 {
		text = l.encoded
	} else if !utf8.Valid(key) {
		return &notTextError{"key", slices.Clone(key)}
	} else if !utf8.Valid(value) {
		return &notTextError{"value", slices.Clone(key)}
	}
	_, _ = l.buf.WriteString(`{"key":"`)
	text(key)
	_, _ = l.buf.WriteString(`","value":"`)
	text(value)
	_, err := l.buf.WriteString("\"}\n") // which tells the errors before, too
	return err
}

// text writes a text within quotes. What json.Encoder makes of a value is a second and a
// third value in memory; this is none.
func (l *lineWriter) text(s []byte) {
	for len(s) > 0 {
		n := 0
		for n < len(s) && s[n] >= ' ' && s[n] != '"' && s[n] != '\\' {
			n++
		}
		_, _ = l.buf.Write(s[:n])
		if s = s[n:]; len(s) == 0 {
			return
		}
		c := s[0]
		if i := strings.IndexByte("\"\\\b\f\n\r\t", c); i >= 0 {
			_, _ = l.buf.Write([]byte{'\\', `"\bfnrt`[i]})
		} else {
			_, _ = fmt.Fprintf(l.buf, `\u%04x`, c)
		}
		s = s[1:]
	}
}

func (l *lineWriter) encoded(s []byte) {
	e := base64.NewEncoder(base64.StdEncoding, l.buf)
	_, _ = e.Write(s)
	_ = e.Close()
}

// Write takes what the buffer spills.
func (l *lineWriter) Write(p []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", jsonLines)
	}
	return l.w.Write(p)
}

func scanParams(query string) (rng lmdbstore.Range, inBase64 bool, err error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return rng, false, badRequest("query: %v", err)
	}
	for name, values := range q {
		if !slices.Contains([]string{"prefix", "start", "end", "reverse", "limit", "base64"}, name) {
			return rng, false, badRequest("unknown query parameter %q: there are prefix, start, end, reverse, limit and base64", name)
		}
		if len(values) > 1 {
			return rng, false, badRequest("query parameter %q is given %d times", name, len(values))
		}
	}
	param := func(name string) []byte {
		if v := q.Get(name); v != "" {
			return []byte(v)
		}
		return nil
	}
	rng.Prefix, rng.Start, rng.End = param("prefix"), param("start"), param("end")
	if rng.End != nil && bytes.Compare(rng.Start, rng.End) > 0 {
		return rng, false, badRequest("start %q is after end %q: start is the lower bound, also with reverse=true", rng.Start, rng.End)
	}
	if text := q.Get("limit"); text != "" {
		if rng.Limit, err = strconv.Atoi(text); err != nil || rng.Limit < 1 {
			return rng, false, badRequest("limit %q: want a number from 1", text)
		}
	}
	rng.Reverse, err = boolParam(q, "reverse")
	inBase64, err2 := boolParam(q, "base64")
	return rng, inBase64, errors.Join(err, err2)
}

func boolParam(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "", "false", "0":
		return false, nil
	case "true", "1":
		return true, nil
	}
	return false, badRequest("%s=%s: want true or false", name, q.Get(name))
}
