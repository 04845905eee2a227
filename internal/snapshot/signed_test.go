package snapshot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// signers makes a signing key for each name, and trusts them all.
func signers(t *testing.T, names ...string) (map[string]*signing.Signer, *signing.Trusted) {
	t.Helper()
	dir := t.TempDir()
	all := map[string]*signing.Signer{}
	var public []byte
	for _, name := range names {
		secret, verifier, err := signing.GenerateKey(name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		if all[name], err = signing.LoadSigner(path); err != nil {
			t.Fatal(err)
		}
		public = append(append(public, verifier...), '\n')
	}
	path := filepath.Join(dir, "trusted")
	if err := os.WriteFile(path, public, 0o644); err != nil {
		t.Fatal(err)
	}
	trusted, err := signing.LoadTrusted(path)
	if err != nil {
		t.Fatal(err)
	}
	return all, trusted
}

// signedBy returns whose signatures are on a snapshot's note as its directory
// holds it.
func signedBy(t *testing.T, trusted *signing.Trusted, s *Snapshot) []string {
	t.Helper()
	note, err := os.ReadFile(filepath.Join(filepath.Dir(s.Path), Name(s.Manifest.Pos)+manifestExt))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(note, s.Note) {
		t.Errorf("the file holds\n%s\nand the snapshot\n%s", note, s.Note)
	}
	text, by, err := trusted.Open(note, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, s.Manifest.Encode()) {
		t.Errorf("signed is\n%s\nwhich is not its manifest", text)
	}
	return by
}

func TestMintSigns(t *testing.T) {
	keys, trusted := signers(t, "m1", "m2")
	dir := t.TempDir()
	r := open(t, dir, Options{Signer: keys["m1"]})
	snap := mint(t, r, storeAt(10, 100<<10))
	if by := signedBy(t, trusted, snap); !slices.Equal(by, []string{"m1"}) {
		t.Errorf("signed by %q", by)
	}

	more, err := keys["m2"].Sign(snap.Manifest.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"added", "added again"} {
		signed, err := r.Countersign(snap.Manifest.Pos, more)
		if err != nil {
			t.Fatal(err)
		}
		if by := signedBy(t, trusted, signed); !slices.Equal(by, []string{"m1", "m2"}) {
			t.Errorf("%s: signed by %q", step, by)
		}
		if got, _ := r.Get(snap.Manifest.InfoHash); got != signed {
			t.Errorf("%s: the directory lists another", step)
		}
	}
	r.Close()
	found := open(t, dir, Options{}).List()
	if len(found) != 1 {
		t.Fatalf("found %d snapshots", len(found))
	}
	if by := signedBy(t, trusted, found[0]); !slices.Equal(by, []string{"m1", "m2"}) {
		t.Errorf("found signed by %q", by)
	}
}

func TestCountersignRefuses(t *testing.T) {
	keys, _ := signers(t, "m1")
	r := open(t, t.TempDir(), Options{})
	snap := mint(t, r, storeAt(10, 1000))
	m := snap.Manifest
	m.Pairs++
	other, err := keys["m1"].Sign(m.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for name, note := range map[string][]byte{"another manifest": other, "an unsigned one": m.Encode(), "junk": []byte("x\n\ny\n")} {
		if _, err := r.Countersign(m.Pos, note); err == nil {
			t.Errorf("took %s", name)
		}
	}
	if _, err := r.Countersign(txlog.Pos{Seq: 11}, snap.Note); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no snapshot: %v", err)
	}
	if got, _ := r.Get(m.InfoHash); got != snap {
		t.Error("the snapshot changed")
	}
	// What was not signed gets its first signature.
	note, err := keys["m1"].Sign(snap.Manifest.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if signed, err := r.Countersign(m.Pos, note); err != nil || !bytes.Equal(signed.Note, note) {
		t.Errorf("the first signature: %v", err)
	}
}

// A crash at any step of countersigning leaves the snapshot, with or without the
// new signature.
func TestCountersignSurvives(t *testing.T) {
	keys, _ := signers(t, "m1", "m2")
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			fsys := &faulty{FS: durable.OS, after: after}
			r, err := Open(dir, Options{FS: fsys, Signer: keys["m1"]})
			if err != nil {
				t.Fatal(err)
			}
			snap := mint(t, r, storeAt(10, 1000))
			note, err := keys["m2"].Sign(snap.Manifest.Encode())
			if err != nil {
				t.Fatal(err)
			}
			fsys.change, fsys.n = 0, n
			_, err = r.Countersign(snap.Manifest.Pos, note)
			reached := fsys.change >= n
			r.Close()
			if reached == (err == nil) {
				t.Errorf("step %d, after %t: reached %t, and %v", n, after, reached, err)
			}
			again := open(t, dir, Options{})
			if found := again.List(); len(found) != 1 || found[0].Manifest != snap.Manifest {
				t.Errorf("step %d, after %t: %d snapshots are left", n, after, len(found))
			}
			wantFiles(t, dir, triple(storeAt(10, 1000))...)
			if !reached {
				if n < 3 {
					t.Errorf("only %d steps", n-1)
				}
				break
			}
		}
	}
}

// TestConfirm lets a second manager replay the log onto an earlier snapshot, and
// sign only what came out the same.
func TestConfirm(t *testing.T) {
	keys, trusted := signers(t, "m1", "m2")
	entries := realEntries(t, 200)
	one := realStore(t)
	apply(t, one, entries)
	theirs := open(t, t.TempDir(), Options{Signer: keys["m1"]})
	claimed, err := theirs.Mint(t.Context(), one, nil)
	if err != nil {
		t.Fatal(err)
	}

	for name, change := range map[string]func(*Manifest){
		"infohash":   func(m *Manifest) { m.InfoHash[0] ^= 1 },
		"sha256":     func(m *Manifest) { m.SHA256[0] ^= 1 },
		"pairs":      func(m *Manifest) { m.Pairs++ },
		"time":       func(m *Manifest) { m.Time = m.Time.Add(1) },
		"piece root": func(m *Manifest) { m.PieceRoot[0] ^= 1 },
	} {
		dir := t.TempDir()
		ours := open(t, dir, Options{Signer: keys["m2"]})
		m := claimed.Manifest
		change(&m)
		false1, err := keys["m1"].Sign(m.Encode())
		if err != nil {
			t.Fatal(err)
		}
		two := realStore(t)
		apply(t, two, entries)
		_, err = ours.Confirm(t.Context(), two, false1)
		if mismatch, ok := errors.AsType[*MismatchError](err); !ok || mismatch.Want != m || mismatch.Got != claimed.Manifest || !errors.Is(err, ErrConflict) {
			t.Errorf("%s is false: %v", name, err)
		}
		wantFiles(t, dir)
	}

	dir := t.TempDir()
	ours := open(t, dir, Options{Signer: keys["m2"]})
	two := realStore(t)
	apply(t, two, entries[:77])
	apply(t, two, entries[77:])
	for _, step := range []string{"new", "held already"} {
		snap, err := ours.Confirm(t.Context(), two, claimed.Note)
		if err != nil {
			t.Fatal(err)
		}
		if by := signedBy(t, trusted, snap); !slices.Equal(by, []string{"m1", "m2"}) {
			t.Errorf("%s: signed by %q", step, by)
		}
		wantFiles(t, dir, Name(snap.Manifest.Pos)+".manifest", Name(snap.Manifest.Pos)+".mdb", Name(snap.Manifest.Pos)+".torrent")
	}
}

// Each field that the pieces do not prove is compared with the file.
func TestVerifyStatement(t *testing.T) {
	one := realStore(t)
	apply(t, one, realEntries(t, 100))
	snap, err := open(t, t.TempDir(), Options{}).Mint(t.Context(), one, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := snap.VerifyStatement(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Manifest){
		"dataset": func(m *Manifest) { m.Dataset[0] ^= 1 },
		"seq":     func(m *Manifest) { m.Pos.Seq++ },
		"hash":    func(m *Manifest) { m.Pos.Hash[31] ^= 1 },
		"time":    func(m *Manifest) { m.Time = m.Time.Add(time.Nanosecond) },
		"format":  func(m *Manifest) { m.Format++ },
		"pairs":   func(m *Manifest) { m.Pairs++ },
		"size":    func(m *Manifest) { m.Size++ },
		"sha256":  func(m *Manifest) { m.SHA256[31] ^= 1 },
	} {
		said := *snap
		change(&said.Manifest)
		if err := said.VerifyStatement(t.Context()); !errors.Is(err, lmdbstore.ErrUnexpected) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
