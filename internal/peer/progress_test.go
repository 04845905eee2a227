package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
)

// wantProgress checks what a node that serves says of its bootstrap.
func wantProgress(t *testing.T, w *testNode, s SnapshotInfo) {
	t.Helper()
	a := w.get("/v1/progress")
	var p FetchProgress
	a.json(t, &p)
	var got Payload
	for _, from := range []Payload{p.From.Managers, p.From.OwnColo, p.From.OtherColos} {
		got.Bytes += from.Bytes
		got.Pieces += from.Pieces
	}
	if p.InfoHash != s.InfoHash || p.Total != s.Size || p.Done != s.Size || p.PiecesDone != p.Pieces || got != (Payload{s.Size, p.Pieces}) ||
		p.Rate != 0 || p.SecondsLeft == nil || *p.SecondsLeft != 0 {
		t.Errorf("%s: progress is %s, want all of snapshot %+v", w.o.Name, a.body, s)
	}
	if p.Began == nil || p.Fetched == nil || p.Serving == nil || p.Fetched.Before(*p.Began) || p.Serving.Before(*p.Fetched) {
		t.Errorf("%s: began, fetched, serving: %s", w.o.Name, a.body)
	}
	if self := w.self(); self.Fetching != "" || self.BytesFromOwnColo+self.BytesFromOtherColos != self.BytesFromWorkers ||
		self.PiecesFromManagers+self.PiecesFromOwnColo+self.PiecesFromOtherColos != uint32(p.Pieces) {
		t.Errorf("%s: status %+v, progress %s", w.o.Name, self, a.body)
	}
}

func TestServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetch p2p.Progress
		began := time.Now()
		s := &served{fetch: func() (p2p.Progress, bool) { return fetch, !fetch.Began.IsZero() }}
		serving := replica.Status{State: replica.Serving, Ready: true}
		for _, step := range []struct {
			name   string
			before func()
			st     replica.Status
			want   time.Duration // since began; -1: not yet
		}{
			{"no fetch", func() {}, serving, -1},
			{"the old copy serves", func() { fetch.Began = began }, serving, -1},
			{"fetched", func() { fetch.Fetched = time.Now() }, replica.Status{State: replica.CatchingUp, Ready: true}, -1},
			{"the new one serves", func() {}, serving, 4 * time.Second},
			{"still", func() {}, serving, 4 * time.Second},
			{"quarantined", func() {}, replica.Status{State: replica.Quarantined}, 4 * time.Second},
			{"the next fetch", func() { fetch.Began, fetch.Fetched = time.Now(), time.Time{} }, replica.Status{State: replica.Repairing}, -1},
			{"fetched as well", func() { fetch.Fetched = time.Now() }, replica.Status{State: replica.Repairing}, -1},
			{"serves", func() {}, serving, 9 * time.Second},
		} {
			time.Sleep(time.Second)
			step.before()
			s.observe(step.st, time.Now())
			_, at, ok := s.last(step.st, time.Now())
			if ok == fetch.Began.IsZero() {
				t.Errorf("%s: ok is %v", step.name, ok)
			}
			if step.want < 0 && !at.IsZero() || step.want >= 0 && at.Sub(began) != step.want {
				t.Errorf("%s: serving since %v", step.name, at.Sub(began))
			}
		}
	})
}
