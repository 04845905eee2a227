package edge

import (
	"net"
	"sync"
)

// corkBytes is how much is collected before it is passed on: four full records.
const corkBytes = 64 << 10

// cork collects what is written. crypto/tls passes each record, 16 KiB, on by itself; with
// four to a system call a transfer takes a fifth less processor time.
type cork struct {
	mu  sync.Mutex // guards what follows, and is held while it is passed on
	on  bool
	buf *[]byte // nil: nothing was collected
}

var corkBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, corkBytes+maxRecord)
	return &b
}}

// maxRecord is the longest record of TLS 1.3 with its header, in bytes (RFC 8446, 5.2).
const maxRecord = 5 + 16<<10 + 256

// Cork has what is written from now on collected, and passed on 64 KiB at a time.
// Whoever writes to the TLS connection above, the connection's one writer, calls it,
// and Uncork when it has nothing more to write at once.
func (s *socket) Cork() {
	s.cork.mu.Lock()
	defer s.cork.mu.Unlock()
	s.cork.on = true
}

// Uncork passes on what was collected. After an error the connection can only be
// closed: something is missing in what the other end gets.
func (s *socket) Uncork() error {
	s.cork.mu.Lock()
	defer s.cork.mu.Unlock()
	s.cork.on = false
	return s.cork.flush(s.Conn)
}

// write collects p, or passes it on.
func (k *cork) write(to net.Conn, p []byte) (int, error) {
	k.mu.Lock()
	if !k.on {
		k.mu.Unlock()
		return to.Write(p)
	}
	defer k.mu.Unlock()
	if k.buf == nil {
		k.buf = corkBuffers.Get().(*[]byte)
	}
	*k.buf = append(*k.buf, p...)
	if len(*k.buf) >= corkBytes {
		if err := k.flush(to); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// flush passes on what was collected. k.mu is held.
func (k *cork) flush(to net.Conn) error {
	if k.buf == nil {
		return nil
	}
	_, err := to.Write(*k.buf)
	*k.buf = (*k.buf)[:0]
	corkBuffers.Put(k.buf)
	k.buf = nil
	return err
}
