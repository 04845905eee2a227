package powercut

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/qs-peer/qs-peer/internal/faultfs"
)

// TestTapeIsTheFile: what is on the tape, all of it, is what LMDB left in the file; so
// nothing is missing on it.
func TestTapeIsTheFile(t *testing.T) {
	r := record(t, 1, 40)
	all := r.tape.base
	for _, e := range r.tape.events {
		if !e.isSync() {
			all = e.Apply(all)
		}
	}
	if !bytes.Equal(all, r.final) {
		t.Fatalf("%s make a file of %d bytes that differs from the one of %d bytes that is there", r.tape, len(all), len(r.final))
	}
	synced := 0
	for _, e := range r.tape.events {
		if e.isSync() || e.synced {
			synced++
		}
	}
	if synced < 2*len(r.marks)-2 { // the pages', and then the meta page's
		t.Fatalf("%d syncs in %d transactions", synced, len(r.marks)-1)
	}
}

// TestCutLoses: a cut keeps all that was synced, may keep or lose what was not, and a
// store without syncs is found out by the campaign's check.
func TestCutLoses(t *testing.T) {
	page := bytes.Repeat([]byte{1}, 4096)
	tape := &Tape{base: make([]byte, 4096), events: []event{
		{Change: faultfs.Change{Data: page}}, {}, {Change: faultfs.Change{Off: 4096, Data: page}}, {Change: faultfs.Change{Off: 512, Data: []byte{7}}, synced: true},
	}}
	kept, lost := 0, 0
	for seed := range uint64(200) {
		b := tape.Cut(4, rand.New(rand.NewPCG(seed, 0)))
		if !bytes.Equal(b[:512], page[:512]) || b[512] != 7 || !bytes.Equal(b[513:4096], page[513:]) {
			t.Fatalf("seed %d: what was synced is gone", seed)
		}
		switch {
		case len(b) == 8192 && bytes.Equal(b[4096:], page):
			kept++
		case len(b) == 4096:
			lost++
		}
	}
	if kept == 0 || lost == 0 {
		t.Fatalf("what was not synced was kept %d times of 200 and lost %d times", kept, lost)
	}

	r := record(t, 2, 40)
	for i := range r.tape.events {
		r.tape.events[i].synced = false
	}
	unsynced := *r.tape
	unsynced.events = nil
	for _, e := range r.tape.events {
		if !e.isSync() {
			unsynced.events = append(unsynced.events, e)
		}
	}
	found := 0
	for seed := range uint64(20) {
		content := unsynced.Cut(len(unsynced.events), rand.New(rand.NewPCG(seed, 0)))
		if err := r.survives(t.TempDir(), content, len(r.tape.events)); err != nil {
			found++
		}
	}
	if found < 10 {
		t.Fatalf("of 20 cuts of a store that syncs nothing %d were found out", found)
	}
}

// dirOf writes a store whose environment has a content.
func dirOf(dir string, content []byte) error {
	gen := filepath.Join(dir, "gen-000001")
	if err := os.MkdirAll(gen, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(gen, "data.mdb"), content, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "CURRENT"), []byte("gen-000001\n"), 0o644)
}
