package lmdbstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSetAside(t *testing.T) {
	dir, _ := sound(t)
	s := open(t, dir, Options{})
	if _, err := SetAside(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("while it is open: %v", err)
	}
	closed(t, s)
	want := filepath.Join(dir, nameOf(1)+damagedSuffix)
	for _, step := range []struct {
		name     string
		do       func() error
		evidence string
	}{
		{"sound", nil, want},
		{"again, with a new store", nil, want},
		{"CURRENT is damaged", func() error {
			return os.WriteFile(filepath.Join(dir, currentFile), []byte("rubbish"), 0o644)
		}, want},
		{"CURRENT is missing", func() error { return os.Remove(filepath.Join(dir, currentFile)) }, want},
		{"the generation is missing", func() error { return os.RemoveAll(filepath.Join(dir, nameOf(1))) }, want},
		{"cut short", func() error { return os.Truncate(filepath.Join(dir, nameOf(1), dataFile), 100) }, want},
		{"an earlier call was killed before its last step", func() error {
			return os.Rename(filepath.Join(dir, nameOf(1)), want)
		}, want},
		{"left-over generations", func() error {
			return os.CopyFS(filepath.Join(dir, nameOf(7)), os.DirFS(filepath.Join(dir, nameOf(1))))
		}, want},
	} {
		t.Run(step.name, func(t *testing.T) {
			if step.do != nil {
				// The evidence of the step before gives way to that of this one.
				if err := errors.Join(os.RemoveAll(want), step.do()); err != nil && step.evidence == want {
					t.Fatal(err)
				}
			}
			evidence, err := SetAside(dir)
			if err != nil {
				t.Fatal(err)
			}
			if step.name == "the generation is missing" {
				if evidence != "" {
					t.Errorf("evidence of nothing: %s", evidence)
				}
			} else if evidence != step.evidence {
				t.Errorf("evidence %q, want %q", evidence, step.evidence)
			} else if _, err := os.Stat(filepath.Join(evidence, dataFile)); err != nil {
				t.Error(err)
			}
			h := newHistory()
			s := open(t, dir, Options{})
			apply(t, s, h.begin(), h.entry(put("a", "1")))
			matches(t, s, h)
			closed(t, s)
			if kept, err := evidenceIn(dir); err != nil || len(kept) > 1 {
				t.Errorf("kept: %v, %v", kept, err)
			}
		})
	}
	if evidence, err := SetAside(filepath.Join(dir, "nothing")); evidence != "" || err != nil {
		t.Errorf("no store: %q, %v", evidence, err)
	}
}

// TestDamagedGenerationIsKept replaces a damaged generation, which stays as evidence.
func TestDamagedGenerationIsKept(t *testing.T) {
	dir, h := sound(t)
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	if err := copyFile(t.Context(), snapshot, filepath.Join(dir, nameOf(1), dataFile), nil); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, Options{})
	if err := s.current.Load().env.note(ErrDamaged); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	before := s.Damaged()
	g, err := s.Install(t.Context(), snapshot, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, g, h.entry(put("a", "2")))
	if err := g.Activate(); err != nil {
		t.Fatal(err)
	}
	<-before
	if err := s.Damage(); err != nil {
		t.Errorf("the new generation: %v", err)
	}
	select {
	case <-s.Damaged():
		t.Error("the new generation is damaged")
	default:
	}
	matches(t, s, h)
	closed(t, s)
	if kept, err := evidenceIn(dir); err != nil || len(kept) != 1 || kept[0] != nameOf(1)+damagedSuffix {
		t.Errorf("kept: %v, %v", kept, err)
	}
}

// TestUncleanIsVerifiedWhole: of a store that was not closed everything is read at open,
// whatever is asked for.
func TestUncleanIsVerifiedWhole(t *testing.T) {
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	apply(t, s, h.begin(), h.entry(put("needle", "value of needle")))
	closed(t, s)
	gen := filepath.Join(dir, nameOf(1))
	edit(t, filepath.Join(gen, dataFile), func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("value of needle"), []byte("value of noodle"))
	})
	s, err := Open(dir, Options{Verify: VerifyQuick})
	if err != nil {
		t.Fatalf("quick does not look at pairs: %v", err)
	}
	closed(t, s)
	if err := os.Remove(filepath.Join(gen, cleanFile)); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(dir, Options{Verify: VerifyQuick}); !errors.Is(err, ErrDamaged) {
		t.Errorf("after an unclean stop: %v", err)
		if err == nil {
			closed(t, s)
		}
	}
}

func TestVerifyAtOpen(t *testing.T) {
	dir, h := sound(t)
	gen := filepath.Join(dir, nameOf(1))
	if clean, err := closedCleanly(gen); !clean || err != nil {
		t.Fatalf("after Close: %v, %v", clean, err)
	}
	s := open(t, dir, Options{})
	marker := filepath.Join(gen, cleanFile)
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("while it is open: %v", err)
	}
	apply(t, s, h.entry(put("a", "1")))
	closed(t, s)
	old, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	apply(t, s, h.entry(put("a", "2")))
	closed(t, s)
	// The removal of an older note did not survive a power cut.
	if err := os.WriteFile(marker, old, 0o644); err != nil {
		t.Fatal(err)
	}
	if clean, err := closedCleanly(gen); clean || err != nil {
		t.Fatalf("by an old note: %v, %v", clean, err)
	}
	for _, v := range []Verify{VerifyQuick, VerifySampled, VerifyFull} {
		if got, err := ParseVerify(v.String()); err != nil || got != v {
			t.Errorf("%v: %v, %v", v, got, err)
		}
		s := open(t, dir, Options{Verify: v})
		matches(t, s, h)
		closed(t, s)
	}
	if _, err := ParseVerify("twice"); err == nil {
		t.Error("parsed nonsense")
	}
	if _, err := Open(t.TempDir(), Options{Verify: 7}); err == nil {
		t.Error("opened with nonsense")
	}
}

// TestWrongGenerationIsKept: so is one that LMDB finds nothing wrong with, if it was
// said to be wrong while it was current.
func TestWrongGenerationIsKept(t *testing.T) {
	for _, wrong := range []uint64{1, 2} {
		dir, _ := sound(t)
		snapshot := filepath.Join(t.TempDir(), "snapshot")
		if err := copyFile(t.Context(), snapshot, filepath.Join(dir, nameOf(1), dataFile), nil); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, Options{})
		s.KeepEvidence(wrong)
		g, err := s.Install(t.Context(), snapshot, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Activate(); err != nil {
			t.Fatal(err)
		}
		closed(t, s)
		kept, err := evidenceIn(dir)
		if want := 2 - int(wrong); err != nil || len(kept) != want {
			t.Errorf("said to be wrong: %d; kept: %v, %v", wrong, kept, err)
		}
	}
}
