package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/signing/signingtest"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// rig is a node's way from an offer to an open environment, and holders that it
// may ask, which say of one snapshot what the test wants.
type rig struct {
	t       *testing.T
	keys    *signingtest.Keys
	truth   *snapshot.Snapshot
	offer   replica.Offer // true
	network *network
	store   *lmdbstore.Store
	reg     *prometheus.Registry
	notes   map[string][]byte // by holder
}

func newRig(t *testing.T, need int, holders ...string) *rig {
	t.Helper()
	r := &rig{t: t, keys: signingtest.New(t, "m1", "m2", "m3"), reg: prometheus.NewRegistry(), notes: map[string][]byte{}}

	// What a manager minted.
	source := openStore(t)
	if err := source.Apply(chain(t, 50)); err != nil {
		t.Fatal(err)
	}
	minted, err := openRepo(t, snapshot.Options{}).Mint(t.Context(), source, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.truth = minted
	m := &minted.Manifest
	r.offer = replica.Offer{Dataset: m.Dataset, Pos: m.Pos, InfoHash: m.InfoHash, Size: m.Size, Manager: true}
	for _, name := range holders {
		holder := httptest.NewUnstartedServer(nil)
		p2p.NewServer(p2p.ServerOptions{Snapshot: func(chunker.InfoHash) ([]byte, []byte, bool) {
			return r.notes[name], minted.Torrent.Metainfo(), r.notes[name] != nil
		}}).Attach(holder.Config)
		holder.Start()
		t.Cleanup(holder.Close)
		r.offer.Holders = append(r.offer.Holders, replica.Holder{Name: name, Addr: holder.Listener.Addr().String(), Manager: true})
	}

	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	o := Options{TrustedKeys: r.keys.Trusted, RequireSignatures: need, Logger: logger}
	sigs, err := openSignatures(&o, r.reg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	swarm, err := p2p.NewSwarm(p2p.SwarmOptions{Name: "here", Listener: ln})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { swarm.Close() })
	client := p2p.NewClient(p2p.ClientOptions{Name: "here"})
	t.Cleanup(client.Close)
	stocked := make(chan struct{})
	close(stocked)
	r.store = openStore(t)
	r.network = &network{
		client: client, swarm: swarm, sigs: sigs, refuted: newDoubts(), changed: newSignal(), fetching: map[chunker.InfoHash]chan struct{}{},
		shelf: &shelf{repo: openRepo(t, snapshot.Options{}), swarm: swarm, sigs: sigs, logger: logger, changed: newSignal(), broken: newSignal(), stocked: stocked},
	}
	return r
}

func openStore(t *testing.T) *lmdbstore.Store {
	t.Helper()
	s, err := lmdbstore.Open(filepath.Join(t.TempDir(), "store"), lmdbstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openRepo(t *testing.T, o snapshot.Options) *snapshot.Repo {
	t.Helper()
	repo, err := snapshot.Open(filepath.Join(t.TempDir(), "snapshots"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return repo
}

// chain returns the first entries of a dataset.
func chain(t *testing.T, n int) (entries []txlog.Entry) {
	t.Helper()
	var pos txlog.Pos
	for seq := range n {
		ops := []txlog.Op{{Kind: txlog.Init, Value: bytes.Repeat([]byte{1}, 16)}}
		if seq > 0 {
			ops = []txlog.Op{{Kind: txlog.Put, Key: fmt.Appendf(nil, "key %d", seq), Value: bytes.Repeat([]byte{byte(seq)}, 2000)}}
		}
		e, err := txlog.Seal(pos, 1, time.Unix(int64(seq), 0), ops)
		if err != nil {
			t.Fatal(err)
		}
		entries, pos = append(entries, e), e.Pos()
	}
	return entries
}

// here puts the snapshot's file where a fetch finds it complete: what is tested is
// what else has to be true before it is opened.
func (r *rig) here(m *snapshot.Manifest) {
	r.t.Helper()
	content, err := os.ReadFile(r.truth.Path)
	if err == nil {
		err = os.WriteFile(r.network.shelf.repo.Partial(m), content, 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// open fetches what is offered, and opens it.
func (r *rig) open(o replica.Offer) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	file, err := r.network.Fetch(ctx, o, nil)
	if err != nil {
		return err
	}
	g, err := r.network.install(ctx, r.store, file)
	if err != nil {
		return err
	}
	if id, pos := (replicaGeneration{g}).Position(); id != o.Dataset || pos != o.Pos {
		err = fmt.Errorf("opened %v at %v", id, pos)
	}
	return errors.Join(err, g.Discard())
}

// refused returns how often a manifest was refused for a reason.
func (r *rig) refused(reason string) float64 {
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "qs_signing_refused_manifests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// signedAs returns a manifest with whosever signatures.
func (r *rig) signedAs(m *snapshot.Manifest, names ...string) []byte {
	r.t.Helper()
	note := m.Encode()
	for i, name := range names {
		one, err := r.keys.Signer(r.t, name).Sign(m.Encode())
		if err != nil {
			r.t.Fatal(err)
		}
		if i == 0 {
			note = one
		} else if note, err = r.network.sigs.combine(note, one); err != nil {
			r.t.Fatal(err)
		}
	}
	return note
}

// TestFalseManifests changes each field of a manifest in turn: without a signature,
// with the signature of the true one, signed by a stranger, and signed by a key that
// is trusted, so that the field itself has to be found false. Nothing of it is
// opened, and nothing is fetched but in the last case, if only the file can tell.
func TestFalseManifests(t *testing.T) {
	fields := []struct {
		name   string
		change func(*snapshot.Manifest)
		// Why it is refused when it is signed and announced truly, and when the
		// announcement says the same as the manifest. Empty: there is no such.
		reason, announced string
	}{
		{"dataset", func(m *snapshot.Manifest) { m.Dataset[5] ^= 1 }, "not_as_announced", "false_manifest"},
		{"seq", func(m *snapshot.Manifest) { m.Pos.Seq++ }, "not_as_announced", "other_torrent"},
		{"hash, as far as the file's name tells", func(m *snapshot.Manifest) { m.Pos.Hash[0] ^= 1 }, "not_as_announced", "other_torrent"},
		{"hash", func(m *snapshot.Manifest) { m.Pos.Hash[31] ^= 1 }, "not_as_announced", "false_manifest"},
		{"time", func(m *snapshot.Manifest) { m.Time = m.Time.Add(time.Second) }, "false_manifest", ""},
		{"format", func(m *snapshot.Manifest) { m.Format++ }, "unknown_format", ""},
		{"pairs", func(m *snapshot.Manifest) { m.Pairs-- }, "false_manifest", ""},
		{"size", func(m *snapshot.Manifest) { m.Size++ }, "not_as_announced", "other_torrent"},
		{"sha256", func(m *snapshot.Manifest) { m.SHA256[0] ^= 1 }, "false_manifest", ""},
		{"infohash", func(m *snapshot.Manifest) { m.InfoHash[0] ^= 1 }, "not_as_announced", ""},
		{"piece-length", func(m *snapshot.Manifest) { m.PieceLength *= 2 }, "other_torrent", ""},
		{"piece-root", func(m *snapshot.Manifest) { m.PieceRoot[0] ^= 1 }, "other_torrent", ""},
	}
	r := newRig(t, 1, "m1")
	good := r.signedAs(&r.truth.Manifest, "m1")
	signatures := good[bytes.LastIndex(good, []byte("\n\n")):]
	for _, f := range fields {
		m := r.truth.Manifest
		f.change(&m)
		likewise := r.offer
		likewise.Dataset, likewise.Pos, likewise.Size = m.Dataset, m.Pos, m.Size
		type try struct {
			how    string
			note   []byte
			offer  replica.Offer
			reason string
		}
		tries := []try{
			{"unsigned", m.Encode(), r.offer, "unsigned"},
			{"with a signature of another", append(bytes.TrimSuffix(m.Encode(), []byte("\n")), signatures...), r.offer, "bad_signature"},
			{"by a stranger", r.signedAs(&m, "stranger"), r.offer, "unknown_key"},
			{"by a trusted key", r.signedAs(&m, "m2"), r.offer, f.reason},
		}
		if f.announced != "" {
			tries = append(tries, try{"announced and by a trusted key", r.signedAs(&m, "m2"), likewise, f.announced})
		}
		for _, try := range tries {
			t.Run(f.name+" "+try.how, func(t *testing.T) {
				before := r.refused(try.reason)
				r.notes["m1"] = try.note
				r.here(&m)
				if err := r.open(try.offer); err == nil {
					t.Fatal("it was opened")
				}
				if got := r.refused(try.reason) - before; got != 1 {
					t.Errorf("counted %v times as %s", got, try.reason)
				}
				if list := r.network.shelf.all(); len(list) > 0 {
					t.Errorf("%d snapshots are held", len(list))
				}
				if try.reason == "false_manifest" {
					// It is not fetched a second time.
					if err := r.open(try.offer); err == nil || !strings.Contains(err.Error(), "is false") {
						t.Errorf("at the second try: %v", err)
					}
					r.network.refuted.among(nil)
				}
				os.Remove(r.network.shelf.repo.Partial(&m))
			})
		}
	}
	// The truth is opened, so the rest was not refused for something else.
	r.notes["m1"] = good
	r.here(&r.truth.Manifest)
	if err := r.open(r.offer); err != nil {
		t.Error(err)
	}
}

// TestSignaturesOfSeveralHolders merges what holders have of them.
func TestSignaturesOfSeveralHolders(t *testing.T) {
	for name, c := range map[string]struct {
		need  int
		by    map[string][]string // whose signatures each holder has
		early bool
		fails bool
	}{
		"one has enough":             {need: 2, by: map[string][]string{"h1": {"m1", "m2"}}},
		"together they have enough":  {need: 3, by: map[string][]string{"h1": {"m1"}, "h2": {"m2"}, "h3": {"m3"}}},
		"the same everywhere":        {need: 2, by: map[string][]string{"h1": {"m1"}, "h2": {"m1"}, "h3": {"m1"}}, early: true},
		"a stranger's does not help": {need: 2, by: map[string][]string{"h1": {"m1"}, "h2": {"m1", "stranger"}}, early: true},
		"strangers only":             {need: 1, by: map[string][]string{"h1": {"stranger"}, "h2": {"nobody"}}, fails: true},
		"one is wrong":               {need: 1, by: map[string][]string{"h1": {"stranger"}, "h2": {}, "h3": {"m3"}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.need, "h1", "h2", "h3")
			for holder, by := range c.by {
				var all []byte
				for _, name := range by {
					one := r.signedAs(&r.truth.Manifest, name)
					if all == nil {
						all = one
					} else {
						all = append(all, one[bytes.LastIndex(one, []byte("\n\n"))+2:]...)
					}
				}
				if all == nil {
					all = r.truth.Manifest.Encode()
				}
				r.notes[holder] = all
			}
			r.here(&r.truth.Manifest)
			err := r.open(r.offer)
			if errors.Is(err, replica.ErrTooEarly) != c.early || (err != nil) != (c.early || c.fails) {
				t.Fatalf("opening: %v", err)
			}
			if err != nil {
				return
			}
			// What is kept, and handed on, has the signatures of all that were asked.
			snap, ok := r.network.shelf.get(r.offer.InfoHash)
			if !ok || len(r.network.sigs.by(snap.Note)) < c.need {
				t.Errorf("offered: %t, signed by %q", ok, r.network.sigs.by(snap.Note))
			}
		})
	}
}

// TestReplayedManifest answers for a newer snapshot with the manifest of an older
// one, truly signed.
func TestReplayedManifest(t *testing.T) {
	r := newRig(t, 1, "m1")
	older := r.truth.Manifest
	newer := r.offer
	newer.Pos = txlog.Pos{Seq: older.Pos.Seq + 10, Hash: txlog.Hash{1}}
	r.notes["m1"] = r.signedAs(&older, "m1")
	if err := r.open(newer); err == nil {
		t.Error("an older snapshot was opened for a newer one")
	}
	if r.refused("not_as_announced") != 1 {
		t.Error("it was not counted")
	}
}

// TestHeldBack: what an earlier process left without enough signatures is neither
// offered nor opened nor lost, and is offered once they were found elsewhere.
func TestHeldBack(t *testing.T) {
	for name, note := range map[string]func(*rig) []byte{
		"unsigned":      func(r *rig) []byte { return r.truth.Manifest.Encode() },
		"by a stranger": func(r *rig) []byte { return r.signedAs(&r.truth.Manifest, "stranger") },
		"by one of two": func(r *rig) []byte { return r.signedAs(&r.truth.Manifest, "m1") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 2, "h1")
			r.here(&r.truth.Manifest)
			if _, err := r.network.shelf.repo.Adopt(t.Context(), note(r), r.truth.Torrent); err != nil {
				t.Fatal(err)
			}
			r.network.shelf.stocked = make(chan struct{})
			linked := func(txlog.Pos) (bool, error) { return true, nil }
			if err := r.network.shelf.restock(t.Context(), r.offer.Dataset, linked); err != nil {
				t.Fatal(err)
			}
			if offered, held := len(r.network.shelf.list()), len(r.network.shelf.all()); offered != 0 || held != 1 {
				t.Fatalf("%d offered, %d held", offered, held)
			}
			r.notes["h1"] = r.signedAs(&r.truth.Manifest, "m1")
			if err := r.open(r.offer); !errors.Is(err, replica.ErrTooEarly) {
				t.Fatalf("with one signature of two: %v", err)
			}
			r.notes["h1"] = r.signedAs(&r.truth.Manifest, "m1", "m3")
			if err := r.open(r.offer); err != nil {
				t.Fatal(err)
			}
			if offered, held := len(r.network.shelf.list()), len(r.network.shelf.all()); offered != 1 || held != 1 {
				t.Errorf("%d offered, %d held", offered, held)
			}
			if _, err := os.Stat(r.network.shelf.repo.Partial(&r.truth.Manifest)); !os.IsNotExist(err) {
				t.Errorf("it was fetched again: %v", err)
			}
		})
	}
}
