package peer

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

// ward is an infirmary with a store that can be replaced.
type ward struct {
	*infirmary
	store *lmdbstore.Store
	dir   string
	snap  *snapshot.Snapshot
}

func newWard(t *testing.T) *ward {
	t.Helper()
	w := &ward{dir: t.TempDir()}
	var err error
	if w.store, err = lmdbstore.Open(filepath.Join(w.dir, storeDir), lmdbstore.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	if err := w.store.Apply(chain(t, 20)); err != nil {
		t.Fatal(err)
	}
	if w.snap, err = openRepo(t, snapshot.Options{}).Mint(t.Context(), w.store, nil); err != nil {
		t.Fatal(err)
	}
	w.infirmary, err = openInfirmary(w.dir, slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	w.resume(w.store)
	return w
}

// replace makes another generation current.
func (w *ward) replace(t *testing.T) {
	t.Helper()
	g, err := w.store.Install(t.Context(), w.snap.Path, nil, nil)
	if err == nil {
		err = g.Activate()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFindingOfAReplacedCopy: damage of a copy that was replaced meanwhile says nothing
// of the one that took its place.
func TestFindingOfAReplacedCopy(t *testing.T) {
	w := newWard(t)
	found := finding{Part: partDigest, Err: errors.New("2 of 3 pieces differ"), Generation: w.store.Generation()}
	w.replace(t)
	w.report(found)
	if err := w.reason(); err != nil || w.Reason() != nil {
		t.Errorf("the new copy is in quarantine: %v", err)
	}
	found.Generation = w.store.Generation()
	w.report(found)
	if w.reason() == nil || w.Reason() == nil {
		t.Error("the current copy is not in quarantine")
	}
	// It is replaced by one that was on its way already, not for its damage.
	w.Tried("", nil)
	if w.reason() == nil {
		t.Error("let go though nothing replaced it")
	}
	w.replace(t)
	w.Tried("", nil)
	if err := w.reason(); err != nil {
		t.Errorf("the new copy is in quarantine: %v", err)
	}
}

// TestDamagedBytes: a repair is counted with what is known to be damaged, the most that
// somebody knows, and that is a page at least; and with what was fetched since it began.
func TestDamagedBytes(t *testing.T) {
	w := newWard(t)
	var fetched int64
	w.fetched = func() int64 { return fetched }
	for _, c := range []struct {
		found []int64
		want  float64
	}{{[]int64{0}, 4096}, {[]int64{8192, 4096}, 8192}, {[]int64{0, 0, 40960}, 40960}} {
		before := testutil.ToFloat64(w.metrics.damaged.WithLabelValues("store_mint"))
		for _, n := range c.found {
			w.report(finding{Part: partStore, Err: errors.New("page 7 is damaged"), Bytes: n})
		}
		fetched += 100
		w.Tried(replica.Salvaged, errors.New("not yet"))
		fetched += 11
		w.Tried(replica.Salvaged, nil)
		if got := testutil.ToFloat64(w.metrics.damaged.WithLabelValues("store_mint")) - before; got != c.want {
			t.Errorf("found %v, counted %v, want %v", c.found, got, c.want)
		}
		fetched += 1000 // by a bootstrap that mends nothing
	}
	if got := testutil.ToFloat64(w.metrics.fetched.WithLabelValues("store_mint")); got != 3*111 {
		t.Errorf("%v bytes were fetched by repairs, want %d", got, 3*111)
	}
}

// TestWrongCopyIsEvidence: a copy that holds something else than it should is kept when
// it is replaced, also by a later process.
func TestWrongCopyIsEvidence(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w := newWard(t)
		env := filepath.Base(filepath.Dir(w.store.DataFile()))
		w.report(finding{Part: partChain, Err: errors.New("it diverged")})
		if restart {
			if err := w.store.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			if w.store, err = lmdbstore.Open(filepath.Join(w.dir, storeDir), lmdbstore.Options{}); err != nil {
				t.Fatal(err)
			}
			if w.infirmary, err = openInfirmary(w.dir, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
				t.Fatal(err)
			}
			w.resume(w.store)
		}
		w.replace(t)
		w.Tried(replica.Local, nil)
		if err := errors.Join(w.store.Close(), w.reason()); err != nil {
			t.Fatal(err)
		}
		if kept, err := filepath.Glob(filepath.Join(w.dir, storeDir, "*.damaged")); err != nil || len(kept) != 1 || filepath.Base(kept[0]) != env+".damaged" {
			t.Errorf("restarted: %t; kept: %q, %v", restart, kept, err)
		}
		if cases, err := filepath.Glob(filepath.Join(w.dir, evidenceDir, casePrefix+"*")); err != nil || len(cases) != 1 {
			t.Errorf("closed cases: %q, %v", cases, err)
		}
	}
}
