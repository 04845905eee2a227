package p2p

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one peer may keep a server busy with. A node that means well has one log stream, or
// two while it changes from one to the other.
const (
	maxPeerStreams  = 8
	maxPeerRequests = 2*maxAskerRequests + maxPeerStreams // in flight, of any kind

	// requestRate is how many requests a second are answered, after requestBurst at
	// once. A piece that is sent does not count: its bytes do, elsewhere.
	requestRate  = 1000
	requestBurst = 4096
	// dear is as how many requests one for a log stream, a manifest or a metainfo counts.
	dear = 50
)

// quotas are what peers use of a server, by their names. The zero value is ready.
type quotas struct {
	mu sync.Mutex // guards what follows
	of map[string]*quota
}

type quota struct {
	streams, requests int // in flight
	rate              *rate.Limiter
}

// enter counts a request in, unless it is one too many: a *BusyError.
func (q *quotas) enter(name, path string) (leave func(), err error) {
	stream, cost := 0, 1
	switch {
	case path == logPath:
		stream, cost = 1, dear
	case strings.HasSuffix(path, manifestLeaf), strings.HasSuffix(path, torrentLeaf):
		cost = dear
	case strings.Contains(path, pieceLeaf):
		cost = 0 // should it fail, it is charged
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.of[name]
	if u == nil {
		q.forget()
		u = &quota{rate: rate.NewLimiter(requestRate, requestBurst)}
		q.of[name] = u
	}
	busy := func(format string, n int) (func(), error) {
		return nil, &BusyError{fmt.Sprintf(format, name, n), busyRetry}
	}
	switch {
	case u.streams+stream > maxPeerStreams:
		return busy("%s reads %d log streams already", u.streams)
	case u.requests >= maxPeerRequests:
		return busy("%s has %d requests already", u.requests)
	case u.rate.Tokens() < 1 || !u.rate.AllowN(time.Now(), cost):
		return busy("%s asks more often than %d times a second", requestRate)
	}
	u.streams += stream
	u.requests++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		u.streams -= stream
		u.requests--
	}, nil
}

// charge counts a request that was let in for nothing, and brought nothing.
func (q *quotas) charge(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u := q.of[name]; u != nil {
		u.rate.Allow()
	}
}

// forget drops those that have been quiet. q.mu is held.
func (q *quotas) forget() {
	if q.of == nil {
		q.of = make(map[string]*quota)
	}
	for name, u := range q.of {
		if u.requests == 0 && u.rate.Tokens() >= requestBurst {
			delete(q.of, name)
		}
	}
}
