package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/lmdbstore"
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
	for round := range 2 {
		m1.putMany(fmt.Sprint("round", round), 700)
		s := m1.mint()
		m1.put("after", fmt.Sprint(round))
		for _, m := range []*testNode{m2, m1} {
			eventually(t, m.o.Name+" holds two signatures", func() bool {
				return slices.Equal(m.signedBy(keys, s.InfoHash), []string{"m1", "m2"})
			})
		}
	}
	if got := m2.metric(`qs_signing_replays_total{result="signed"}`); got != "2" {
		t.Errorf("m2 signed %q snapshots", got)
	}
	// The other way round: the writer signs what a follower minted.
	last := m1.put("after", "all")
	m2.caughtUp(last)
	s := m2.mint()
	for _, m := range []*testNode{m1, m2} {
		eventually(t, m.o.Name+" holds two signatures", func() bool {
			return slices.Equal(m.signedBy(keys, s.InfoHash), []string{"m1", "m2"})
		})
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

// corrupting mints another value than the store holds.
type corrupting struct{ *lmdbstore.Store }

func (c corrupting) Mint(ctx context.Context, begin func(lmdbstore.SnapshotInfo) (io.Writer, error)) (lmdbstore.SnapshotInfo, error) {
	return c.Store.Mint(ctx, func(info lmdbstore.SnapshotInfo) (io.Writer, error) {
		w, err := begin(info)
		return &flipping{w: w}, err
	})
}

type flipping struct {
	w    io.Writer
	done bool
}

func (f *flipping) Write(p []byte) (int, error) {
	if i := bytes.Index(p, []byte("777777")); i >= 0 && !f.done {
		f.done = true
		p = slices.Clone(p)
		p[i]++
	}
	return f.w.Write(p)
}

// TestCorruptedManager: a manager whose copy is damaged publishes and signs what
// its log does not lead to. The other one finds out, does not sign, and raises the
// alarm; nobody opens the snapshot.
func TestCorruptedManager(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1", "m2")
	m1 := newNode(t, "m1", gossip.Manager).sign(keys, 2)
	m1.start()
	m1.putMany("a", 1000)
	m2 := newNode(t, "m2", gossip.Manager, m1).sign(keys, 2)
	m2.start()
	m2.caughtUp(m1.put("b", "1"))

	m1.stop()
	repo, err := snapshot.Open(filepath.Join(m1.o.Data, snapshotsDir), snapshot.Options{Signer: keys.Signer(t, "m1")})
	if err != nil {
		t.Fatal(err)
	}
	store, err := lmdbstore.Open(filepath.Join(m1.o.Data, storeDir), lmdbstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := repo.Mint(t.Context(), corrupting{store}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Close(), repo.Close()); err != nil {
		t.Fatal(err)
	}
	m1.o.Join = []string{m2.p.Addrs().Gossip}
	m1.start()
	h := wrong.Manifest.InfoHash.String()
	eventually(t, "m1 offers the wrong snapshot", func() bool { return slices.Equal(m1.offers(), []string{h}) })
	eventually(t, "m2 finds out", func() bool {
		return m2.metric(`qs_signing_replays_total{result="mismatch"}`) == "1" && m2.metric("qs_snapshot_conflicts") == "1"
	})
	w := newNode(t, "w1", gossip.Worker, m2).sign(keys, 2)
	w.start()
	w.caughtUp(m1.put("c", "1"))
	for _, n := range []*testNode{m2, w} {
		if slices.Contains(n.offers(), h) {
			t.Errorf("%s offers the wrong snapshot", n.o.Name)
		}
	}
	if got := m1.signedBy(keys, h); !slices.Equal(got, []string{"m1"}) {
		t.Errorf("the wrong snapshot is signed by %q", got)
	}
	wantSame(t, m1, m2, w)
	if left, err := filepath.Glob(filepath.Join(m2.o.Data, replayDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("the replay left %q, %v", left, err)
	}
}

// TestReplayAfterACrash: what a crash left of a replay is removed.
func TestReplayAfterACrash(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1", "m2")
	m := newNode(t, "m1", gossip.Manager).sign(keys, 2)
	left := filepath.Join(m.o.Data, replayDir, "gen-000001", "data.mdb")
	m.start()
	m.stop()
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o755), os.WriteFile(left, []byte("half"), 0o644)); err != nil {
		t.Fatal(err)
	}
	m.start()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestSignedRestart: a signed snapshot is offered again after a restart; when the
// keys are no longer trusted it is held back, without a restart, and not lost.
func TestSignedRestart(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1")
	m := newNode(t, "m1", gossip.Manager).sign(keys, 1)
	m.start()
	m.putMany("a", 500)
	s := m.mint()
	last := m.put("b", "1")
	w := newNode(t, "w1", gossip.Worker, m).sign(keys, 1)
	w.start()
	w.caughtUp(last)
	if got := w.signedBy(keys, s.InfoHash); !slices.Equal(got, []string{"m1"}) {
		t.Errorf("signed by %q", got)
	}
	w.stop()
	w.start()
	eventually(t, "it offers the snapshot again", func() bool { return slices.Equal(w.offers(), []string{s.InfoHash}) })

	others := signingtest.New(t, "m9")
	known, err := os.ReadFile(keys.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(content []byte) {
		t.Helper()
		next := keys.Trusted + ".next"
		if err := errors.Join(os.WriteFile(next, content, 0o644), os.Rename(next, keys.Trusted)); err != nil {
			t.Fatal(err)
		}
	}
	stranger, err := os.ReadFile(others.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	replace(stranger)
	eventually(t, "it is held back", func() bool {
		return len(w.offers()) == 0 && w.metric("qs_signing_held_back_snapshots") == "1"
	})
	replace(known)
	eventually(t, "it is offered again", func() bool { return slices.Equal(w.offers(), []string{s.InfoHash}) })
}

// TestSigningKeyChanges replaces a manager's signing key, the new one trusted first,
// the old one not any more at last: what was published stays on offer.
func TestSigningKeyChanges(t *testing.T) {
	t.Parallel()
	keys := signingtest.New(t, "m1")
	m := newNode(t, "m1", gossip.Manager).sign(keys, 1)
	m.start()
	m.putMany("a", 500)
	s := m.mint()
	w := newNode(t, "w1", gossip.Worker, m).sign(keys, 1)
	w.start()
	w.caughtUp(m.put("b", "1"))
	before, err := os.ReadFile(keys.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	keys.Trust(t, "m1") // a new key, and both count
	both, err := os.ReadFile(keys.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the manager signed with both", func() bool {
		return strings.Count(m.get("/v1/snapshots/"+s.InfoHash+"/manifest").body, "— m1 ") == 2
	})
	next := keys.Trusted + ".next"
	if err := errors.Join(os.WriteFile(next, bytes.TrimPrefix(both, before), 0o644), os.Rename(next, keys.Trusted)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new key is enough for the worker", func() bool {
		return slices.Equal(w.signedBy(keys, s.InfoHash), []string{"m1"})
	})
}

func TestKeyOptions(t *testing.T) {
	keys := signingtest.New(t, "m1", "m2")
	strangers := signingtest.New(t, "m1")
	open := filepath.Join(t.TempDir(), "open")
	secret, err := os.ReadFile(keys.Path("m1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(open, secret, 0o644), os.Chmod(open, 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		role gossip.Role
		o    Options
		want string
	}{
		"TLS without keys":            {gossip.Worker, Options{TLS: trust.Files{CA: "ca", Cert: "cert", Key: "key"}}, "--trusted-keys is missing"},
		"a signing key alone":         {gossip.Manager, Options{SigningKey: keys.Path("m1")}, "needs --trusted-keys"},
		"required and none trusted":   {gossip.Manager, Options{RequireSignatures: 1}, "needs --trusted-keys"},
		"a negative number":           {gossip.Worker, Options{TrustedKeys: keys.Trusted, RequireSignatures: -1}, "want 1 or more"},
		"a worker's signing key":      {gossip.Worker, Options{TrustedKeys: keys.Trusted, SigningKey: keys.Path("m1")}, "for managers"},
		"a manager without":           {gossip.Manager, Options{TrustedKeys: keys.Trusted}, "--signing-key is missing"},
		"a key nobody trusts":         {gossip.Manager, Options{TrustedKeys: keys.Trusted, SigningKey: strangers.Path("m1")}, "not among the trusted"},
		"more than there are":         {gossip.Worker, Options{TrustedKeys: keys.Trusted, RequireSignatures: 3}, "nothing could ever be accepted"},
		"a key that others can read":  {gossip.Manager, Options{TrustedKeys: keys.Trusted, SigningKey: open}, "lets others at it"},
		"no such file":                {gossip.Worker, Options{TrustedKeys: open + "x"}, "no such file"},
		"a signing key to be trusted": {gossip.Worker, Options{TrustedKeys: keys.Path("m1")}, "line 1 is a signing key"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "n", c.role)
			n.o.TrustedKeys, n.o.SigningKey, n.o.RequireSignatures, n.o.TLS = c.o.TrustedKeys, c.o.SigningKey, c.o.RequireSignatures, c.o.TLS
			p, err := Start(t.Context(), n.o)
			if err == nil {
				p.Close(t.Context())
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q in it", err, c.want)
			}
			if data := string(secret[len(secret)-20 : len(secret)-1]); strings.Contains(err.Error(), data) {
				t.Error("the error holds the secret")
			}
		})
	}
}
