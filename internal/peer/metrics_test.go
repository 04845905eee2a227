package peer

import (
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

func TestLag(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	for _, tt := range []struct {
		name    string
		store   lmdbstore.State
		known   replica.Status
		entries uint64
		seconds float64
	}{
		{"level", lmdbstore.State{Pos: testPos(7), Time: at}, replica.Status{Head: testPos(7), HeadTime: at}, 0, 0},
		{"ahead of what is known", lmdbstore.State{Pos: testPos(8), Time: at}, replica.Status{Head: testPos(7), HeadTime: at}, 0, 0},
		{"behind", lmdbstore.State{Pos: testPos(5), Time: at}, replica.Status{Head: testPos(7), HeadTime: at.Add(90 * time.Second)}, 2, 90},
		{"the head's time is unknown", lmdbstore.State{Pos: testPos(5), Time: at}, replica.Status{Head: testPos(7)}, 2, 0},
		{"nothing applied", lmdbstore.State{}, replica.Status{Head: testPos(7), HeadTime: at}, 7, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if entries, seconds := lag(tt.store, tt.known); entries != tt.entries || seconds != tt.seconds {
				t.Errorf("got %d entries, %v s; want %d, %v", entries, seconds, tt.entries, tt.seconds)
			}
		})
	}
}
