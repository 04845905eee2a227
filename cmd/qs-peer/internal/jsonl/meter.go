package jsonl

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// Meter shows the progress of an import. A nil Meter shows nothing.
type Meter struct {
	term *term.Meter
	read atomic.Int64 // bytes
}

// NewMeter shows on w how much of size bytes (0: unknown) is done.
func NewMeter(ctx context.Context, w io.Writer, what string, size int64) *Meter {
	return &Meter{term: term.NewMeter(ctx, w, what, size)}
}

// Count returns r with what is read from it counted.
func (m *Meter) Count(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return countingReader{r, &m.read}
}

// Acknowledged shows how far the import is.
func (m *Meter) Acknowledged(s Summary) {
	if m == nil {
		return
	}
	rate := uint64(float64(s.Operations) / m.term.Elapsed().Seconds())
	m.term.Set(m.read.Load(), "%s pairs, %s/s", term.Count(s.Operations), term.Count(rate))
}

// Done takes the display away.
func (m *Meter) Done() {
	if m != nil {
		m.term.Done()
	}
}

type countingReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}
