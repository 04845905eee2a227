package p2p_test

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// TestRange fetches parts of a log: no more is sent than was asked for, and who
// does not have it says so.
func TestRange(t *testing.T) {
	checkLeaks(t)
	log := newLog(t, txlog.Options{SegmentBytes: 1 << 20})
	fill(t, log, 40_000)
	reg := prometheus.NewRegistry()
	ln := listen(t)
	serve(t, ln, p2p.NewServer(p2p.ServerOptions{Log: log, Snapshot: noSnapshots, Registerer: reg}))
	// Whoever follows signed heads can fetch a range of those who have none: it proves itself.
	client := newClient(t, p2p.ClientOptions{SignedHeads: true})
	from := p2p.Target{Addr: ln.Addr().String()}
	at := func(seq uint64) txlog.Pos {
		t.Helper()
		if seq == 0 {
			return txlog.Pos{}
		}
		r, err := log.Reader(txlog.Pos{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for {
			entries, err := r.Next(t.Context(), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if last := entries[len(entries)-1]; last.Seq >= seq {
				return entries[seq-entries[0].Seq].Pos()
			}
		}
	}
	for _, c := range [][2]uint64{{0, 1}, {0, 40_001}, {7, 8}, {20_000, 20_500}, {100, 30_000}} {
		after, until := at(c[0]), at(c[1])
		next := after
		bytes, err := client.Range(t.Context(), from, dataset, after, until, func(entries []txlog.Entry) error {
			for i := range entries {
				if entries[i].Seq != next.Seq+1 || entries[i].Prev != next.Hash {
					t.Fatalf("entry %d after %v", entries[i].Seq, next)
				}
				next = entries[i].Pos()
			}
			return nil
		})
		if err != nil || next != until || bytes < int64(c[1]-c[0])*100 {
			t.Errorf("%v: got up to %v, %d bytes, %v", c, next.Seq, bytes, err)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "qs_p2p_stream_sent_entries_total" && f.GetMetric()[0].GetCounter().GetValue() != 1+40_001+1+500+29_900 {
			t.Errorf("%v entries were sent", f.GetMetric()[0].GetCounter().GetValue())
		}
	}

	nothing := func([]txlog.Entry) error { return nil }
	beyond := log.Head()
	beyond.Seq++
	if _, err := client.Range(t.Context(), from, dataset, at(40_000), beyond, nothing); !errors.Is(err, p2p.ErrNotHeld) {
		t.Errorf("beyond the end: %v", err)
	}
	var diverged *txlog.DivergedError
	other := at(5)
	other.Hash[0]++
	if _, err := client.Range(t.Context(), from, dataset, other, at(9), nothing); !errors.As(err, &diverged) || diverged.Have != at(5).Hash {
		t.Errorf("another history: %v", err)
	}
	boom := errors.New("boom")
	if _, err := client.Range(t.Context(), from, dataset, at(5), at(9), func([]txlog.Entry) error { return boom }); err != boom {
		t.Errorf("an error of the taker: %v", err)
	}
	if _, err := client.Range(t.Context(), from, dataset, at(9), at(5), nothing); !errors.Is(err, p2p.ErrProtocol) {
		t.Errorf("backwards: %v", err)
	}
	var trimmed *txlog.TrimmedError
	if _, err := log.Trim(20_000); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Range(t.Context(), from, dataset, txlog.Pos{}, log.Head(), nothing); !errors.As(err, &trimmed) {
		t.Errorf("trimmed: %v", err)
	}
}
