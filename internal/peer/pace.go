package peer

import "time"

const (
	// stallTimeout cuts a client off that neither sends nor takes anything.
	stallTimeout = 30 * time.Second
	// minRate cuts one off that does so more slowly, in bytes per second, once it took
	// stallTimeout longer than that allows.
	minRate = 64 << 10
	// writeChunk is how much a client has to take within stallTimeout.
	writeChunk = 64 << 10
)

// pace watches how fast a client sends one thing, or takes it. What the node itself
// needs in between does not count.
type pace struct {
	moved int64
	spent time.Duration
}

// move gives fn, which moves some of the bytes, a deadline.
func (p *pace) move(setDeadline func(time.Time) error, fn func() (int, error)) (int, error) {
	begin := time.Now()
	allowed := stallTimeout + time.Duration(p.moved/minRate)*time.Second - p.spent
	if err := setDeadline(begin.Add(min(allowed, stallTimeout))); err != nil {
		return 0, err
	}
	n, err := fn()
	p.moved += int64(n)
	p.spent += time.Since(begin)
	return n, err
}
