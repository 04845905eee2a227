package peer

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
)

// FetchProgress is a node's present or last fetch of a snapshot: GET /v1/progress.
type FetchProgress struct {
	InfoHash   string `json:"infohash"`
	Total      int64  `json:"total"` // bytes
	Done       int64  `json:"done"`  // verified, found on disk or received
	Pieces     int    `json:"pieces"`
	PiecesDone int    `json:"pieces_done"`
	// From is what was received in verified pieces; a piece counts for the source
	// that sent most of it.
	From struct {
		Managers   Payload `json:"managers"`
		OwnColo    Payload `json:"own_colo"`
		OtherColos Payload `json:"other_colos"`
	} `json:"from"`
	Wasted      int64      `json:"wasted"`       // bytes received twice, or in a bad piece
	Rate        int64      `json:"rate"`         // bytes per second over the last 5 s
	SecondsLeft *float64   `json:"seconds_left"` // null without a rate
	Began       *time.Time `json:"began"`
	Fetched     *time.Time `json:"fetched"` // when every piece was verified
	Serving     *time.Time `json:"serving"` // when the replica first served after that
	Running     bool       `json:"running"` // false: it is over, fetched or failed
}

// Payload is a part of what a fetch received.
type Payload struct {
	Bytes  int64 `json:"bytes"`
	Pieces int   `json:"pieces"`
}

// errNeverFetched is 404: a node that has all its data from the log, or from its
// own disk, fetches no snapshot.
var errNeverFetched = errors.New("this node has fetched no snapshot since it started: see /v1/status for its state")

func (a *api) getProgress(w *response, _ *http.Request) {
	p, ok := a.progress()
	if !ok {
		writeError(w, http.StatusNotFound, errNeverFetched)
		return
	}
	writeJSONBody(w, http.StatusOK, p)
}

func progressOf(p p2p.Progress, serving time.Time) FetchProgress {
	f := FetchProgress{
		InfoHash: p.InfoHash.String(), Total: p.Total, Done: p.Done, Pieces: p.Pieces, PiecesDone: p.PiecesDone,
		Wasted: p.Wasted, Rate: p.Rate, Began: timeOrNull(p.Began), Fetched: timeOrNull(p.Fetched), Serving: timeOrNull(serving),
		Running: p.Running,
	}
	f.From.Managers = Payload(p.From[p2p.FromManagers])
	f.From.OwnColo = Payload(p.From[p2p.FromOwnColo])
	f.From.OtherColos = Payload(p.From[p2p.FromOtherColos])
	f.SecondsLeft = secondsLeft(p)
	return f
}

// secondsLeft returns nil when there is nothing to estimate by.
func secondsLeft(p p2p.Progress) *float64 {
	left, ok := p.Left()
	if !ok {
		return nil
	}
	seconds := left.Seconds()
	return &seconds
}

// progress is Peer.Progress.
func (w *wiring) progress() (FetchProgress, bool) {
	p, serving, ok := w.served.last(w.replica.Status(), time.Now())
	if !ok {
		return FetchProgress{}, false
	}
	return progressOf(p, serving), true
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// served remembers when the replica first served after the last fetch.
type served struct {
	fetch func() (p2p.Progress, bool) // the present or last one

	mu    sync.Mutex // guards what follows
	began time.Time  // of the fetch that at is about
	at    time.Time
}

// observe is told every change of the replica's state.
func (s *served) observe(st replica.Status, now time.Time) { s.last(st, now) }

// last returns the present or last fetch and when the replica first served
// after it, given that it is in the state st now.
func (s *served) last(st replica.Status, now time.Time) (p p2p.Progress, serving time.Time, ok bool) {
	if p, ok = s.fetch(); !ok {
		return p, serving, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began.Equal(p.Began) {
		s.began, s.at = p.Began, time.Time{}
	}
	if s.at.IsZero() && !p.Fetched.IsZero() && st.Ready && st.State == replica.Serving {
		s.at = now
	}
	return p, s.at, true
}
