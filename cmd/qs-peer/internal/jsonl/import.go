package jsonl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

// A batch is one transaction: so many operations, or so many bytes of JSON,
// whichever comes first. Large enough that fsync and the round trip hardly
// count, small enough that the entry is far from txlog.MaxEntry and that an
// interrupted import loses little.
const (
	batchOps   = 10_000
	batchBytes = 4 << 20
)

// Summary says what an import achieved.
type Summary struct {
	Operations uint64 `json:"operations"` // acknowledged: on stable storage in the writer's log
	Batches    uint64 `json:"batches"`
	Line       uint64 `json:"line"` // everything through this line is acknowledged
	Seq        uint64 `json:"seq"`  // of the last batch
	Hash       string `json:"hash"`
}

// LineError says which line cannot be read or imported.
type LineError struct {
	Line uint64
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// batch is a transaction on its way.
type batch struct {
	body bytes.Buffer // of /v1/txn, without its end
	ops  uint64
	line uint64 // the last one in it
}

// Import streams lines from r into the writer, in order, in batches that are
// applied whole. At a line that is wrong it stops with a *LineError, after the
// lines before it were sent. acknowledged, if not nil, is called after each batch.
//
// One batch is on its way while the next is read: more would not keep their
// order.
func Import(ctx context.Context, c *client.Client, r io.Reader, base64 bool, acknowledged func(Summary)) (Summary, error) {
	var sum Summary
	g, ctx := errgroup.WithContext(ctx)
	full := make(chan *batch)
	spare := make(chan *batch, 3)
	for range cap(spare) {
		spare <- new(batch)
	}
	var lineErr error
	g.Go(func() error {
		defer close(full)
		lineErr = read(ctx, r, base64, full, spare)
		return nil // the sender first finishes what was read
	})
	g.Go(func() error {
		for b := range full {
			b.body.WriteString(`]}`)
			pos, err := c.Txn(ctx, b.body.Bytes(), base64)
			if err != nil {
				return err
			}
			sum.Operations += b.ops
			sum.Batches++
			sum.Line, sum.Seq, sum.Hash = b.line, pos.Seq, pos.Hash
			if acknowledged != nil {
				acknowledged(sum)
			}
			spare <- b
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return sum, err
	}
	return sum, lineErr
}

// read cuts r into batches.
func read(ctx context.Context, r io.Reader, base64 bool, full chan<- *batch, spare <-chan *batch) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 256<<10), MaxLine)
	var b *batch
	send := func() error {
		if b == nil || b.ops == 0 {
			return nil
		}
		select {
		case full <- b:
			b = nil
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n := uint64(0)
	for lines.Scan() {
		n++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if b == nil {
			select {
			case b = <-spare:
			case <-ctx.Done():
				return ctx.Err()
			}
			b.body.Reset()
			b.body.WriteString(`{"ops":[`)
			b.ops = 0
		}
		buf := b.body.AvailableBuffer()
		if b.ops > 0 {
			buf = append(buf, ',')
		}
		buf, err := appendOp(buf, line, base64)
		if err != nil {
			return errors.Join(send(), &LineError{Line: n, Err: err})
		}
		b.body.Write(buf)
		b.ops++
		b.line = n
		if b.ops >= batchOps || b.body.Len() >= batchBytes {
			if err := send(); err != nil {
				return err
			}
		}
	}
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = &LineError{Line: n + 1, Err: fmt.Errorf("longer than %d bytes, the most that a pair can need", MaxLine)}
	} else if err != nil {
		err = &LineError{Line: n + 1, Err: err}
	}
	return errors.Join(send(), err)
}
