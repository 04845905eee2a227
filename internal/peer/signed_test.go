package peer

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
)

// sign gives a node keys: its own, if it is a manager, and whom to believe.
func (n *testNode) sign(keys *signingtest.Keys, need int) *testNode {
	n.o.TrustedKeys, n.o.RequireSignatures = keys.Trusted, need
	if n.o.Role == gossip.Manager {
		n.o.SigningKey = keys.Path(n.o.Name)
	}
	return n
}

// signedBy returns who signed a snapshot as a node hands it out.
func (n *testNode) signedBy(keys *signingtest.Keys, infohash string) []string {
	n.t.Helper()
	a := n.get("/v1/snapshots/" + infohash + "/manifest")
	if a.code != 200 {
		return nil
	}
	_, by, err := keys.Open(n.t).Open([]byte(a.body), 1)
	if err != nil && signing.ReasonOf(err) == "" {
		n.t.Fatal(err)
	}
	return by
}

// metric returns the value of a metric, with its labels, as a node exposes it.
func (n *testNode) metric(name string) string {
	n.t.Helper()
	for line := range strings.Lines(n.get("/metrics").body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestTwoSignatures requires that two managers minted the same bytes: a worker
// waits until the second one replayed the log and signed.
func TestTwoSignatures(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1", "m2")
	m1 := newNode(t, "m1", gossip.Manager).sign(keys, 2)
	m1.start()
	m1.putMany("a", 2000)
	m2 := newNode(t, "m2", gossip.Manager, m1).sign(keys, 2)
	m2.start()
	m2.caughtUp(m1.put("b", "1"))

	// From entry 1, and then from the snapshot before.
	var last uint64
	for round := range 2 {
		m1.putMany(fmt.Sprint("round", round), 700)
		s := m1.mint()
		last = m1.put("after", fmt.Sprint(round))
		for _, m := range []*testNode{m2, m1} {
			eventually(t, m.o.Name+" holds two signatures", func() bool {
				return slices.Equal(m.signedBy(keys, s.InfoHash), []string{"m1", "m2"})
			})
		}
	}
	if got := m2.metric(`qs_signing_replays_total{result="signed"}`); got != "2" {
		t.Errorf("m2 signed %q snapshots", got)
	}

	w := newNode(t, "w1", gossip.Worker, m1).sign(keys, 2)
	w.start()
	w.caughtUp(last)
	wantSame(t, m1, m2, w)
}

// TestOneSignatureOfTwo: as long as one manager signed nobody opens the snapshot,
// whoever offers it, and the log is not trimmed up to it; the second manager's
// signature makes it good.
func TestOneSignatureOfTwo(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1", "m2")
	m1 := newNode(t, "m1", gossip.Manager).sign(keys, 2)
	m1.start()
	m1.putMany("a", 2000)
	s := m1.mint()
	last := m1.put("after", "1")

	w := newNode(t, "w1", gossip.Worker, m1).sign(keys, 2)
	w.start()
	w.caughtUp(last) // by the log: nobody trimmed it
	if got := w.offers(); len(got) > 0 {
		t.Errorf("the worker offers %q, which one of two managers signed", got)
	}
	if got := m1.signedBy(keys, s.InfoHash); !slices.Equal(got, []string{"m1"}) {
		t.Errorf("signed by %q", got)
	}

	m2 := newNode(t, "m2", gossip.Manager, m1).sign(keys, 2)
	m2.start()
	for _, m := range []*testNode{m2, m1} {
		eventually(t, m.o.Name+" holds two signatures", func() bool {
			return slices.Equal(m.signedBy(keys, s.InfoHash), []string{"m1", "m2"})
		})
	}
}
