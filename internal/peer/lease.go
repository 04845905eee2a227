package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// lease is what one connection, or one request, holds of a quota of memory. Its first
// freeMemory bytes are not counted, so that small requests never wait for others' large
// ones. One goroutine uses it.
type lease struct {
	quota  *quota
	holder string
	n      int64
	spare  int64 // of n: taken by whileShort, and not reserved yet
	// patience is what is left of memoryPatience for one request.
	patience time.Duration
}

const (
	freeMemory = 4 << 10
	// memoryPatience is how long a request waits, all in all, for others to give memory
	// back. Those that wait hold some.
	memoryPatience = 5 * time.Second
)

// counted returns how much of n bytes a lease has of its quota.
func counted(n int64) int64 { return max(0, n-freeMemory) }

// take asks for n more bytes, and waits while there is patience left.
func (l *lease) take(ctx context.Context, n int64) error {
	if l.try(n) {
		return nil
	}
	begin := time.Now()
	err := l.quota.take(ctx, l.holder, counted(l.n+n)-counted(l.n), l.patience)
	l.patience -= time.Since(begin)
	if err == nil {
		l.n += n
	}
	return err
}

// begin is told that the next request begins.
func (l *lease) begin() { l.patience = memoryPatience }

// try is take without waiting.
func (l *lease) try(n int64) bool {
	more := counted(l.n+n) - counted(l.n)
	if more > 0 && !l.quota.try(l.holder, more) {
		return false
	}
	l.n += n
	return true
}

// give returns n of the bytes.
func (l *lease) give(n int64) {
	l.quota.give(l.holder, counted(l.n)-counted(l.n-n))
	l.n -= n
}

// shortError is what reserve returns: so many bytes more were wanted than are there.
type shortError struct{ want int64 }

func (e *shortError) Error() string { return fmt.Sprintf("short of %d bytes", e.want) }

// reserve is take for code that must not wait, inside whileShort.
func (l *lease) reserve(n int64) error {
	n -= l.spare
	if n > 0 && !l.try(n) {
		return &shortError{n}
	}
	l.spare = max(0, -n)
	return nil
}

// whileShort runs fn, and when reserve failed in it, waits for that much memory outside
// and runs it again: a read transaction is no place to wait in. After an error nothing
// that was taken in it is kept.
func (l *lease) whileShort(ctx context.Context, fn func() error) error {
	begin := l.n
	for {
		err := fn()
		short, ok := errors.AsType[*shortError](err)
		if ok {
			err = l.take(ctx, short.want)
		}
		if err != nil {
			l.give(l.n - begin)
			l.spare = 0
			return err
		}
		if !ok {
			l.give(l.spare)
			l.spare = 0
			return nil
		}
		l.spare = l.n - begin
	}
}

// close returns all of them.
func (l *lease) close() { l.give(l.n) }

// gatherFirst is the memory that a body or argument gets before any of it arrived.
const gatherFirst = 4 << 10

// gather reads size bytes into memory of a lease, which it takes as they arrive rather
// than as they are announced: at most four times as much as came. After an error it
// returns what it has; a reader that ends early is io.EOF.
func gather(ctx context.Context, r io.Reader, size int64, l *lease) ([]byte, error) {
	room := min(size, gatherFirst)
	if err := l.take(ctx, room); err != nil {
		return nil, err
	}
	b := make([]byte, 0, room)
	for int64(len(b)) < size {
		if len(b) == cap(b) {
			room := min(size, 4*int64(cap(b)))
			if err := l.take(ctx, room); err != nil {
				return b, err
			}
			more := make([]byte, len(b), room)
			copy(more, b)
			l.give(int64(cap(b)))
			b = more
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil && int64(len(b)) < size {
			return b, err
		}
	}
	return b, nil
}
