package lmdbstore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/txlog"
)

// sound makes a closed store with some data and returns its directory.
func sound(t *testing.T) (string, *history) {
	t.Helper()
	r := seeded(t)
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	apply(t, s, h.begin())
	apply(t, s, h.randoms(r, 200)...)
	closed(t, s)
	return dir, h
}

// setMeta changes the database meta of an environment behind the store's back.
func setMeta(t *testing.T, dir, key string, value []byte) {
	t.Helper()
	s := open(t, t.TempDir(), Options{}) // for its counter only
	e, err := openEnv(dir, envOptions{maxReaders: 1, slots: 1, log: s.options.Logger, stale: &s.stale})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.update(func(w *writeTxn) error { return w.putMeta(key, value) }); err != nil {
		t.Fatal(err)
	}
	closed(t, closer(e.close))
}

type closer func() error

func (c closer) Close() error { return c() }

func edit(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree returns the names and the contents below dir, without lock files.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "lock.mdb" {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// damages are what can happen to an environment file.
var damages = []struct {
	name string
	do   func(t *testing.T, file string)
	want error
}{
	{"empty", func(t *testing.T, f string) { edit(t, f, func([]byte) []byte { return nil }) }, ErrDamaged},
	{"100 bytes", func(t *testing.T, f string) { edit(t, f, func(b []byte) []byte { return b[:100] }) }, ErrDamaged},
	{"one page short", func(t *testing.T, f string) { edit(t, f, func(b []byte) []byte { return b[:len(b)-4096] }) }, ErrDamaged},
	{"one byte short", func(t *testing.T, f string) { edit(t, f, func(b []byte) []byte { return b[:len(b)-1] }) }, ErrDamaged},
	{"half", func(t *testing.T, f string) { edit(t, f, func(b []byte) []byte { return b[:len(b)/2] }) }, ErrDamaged},
	{"zeros", func(t *testing.T, f string) { edit(t, f, func(b []byte) []byte { clear(b); return b }) }, ErrDamaged},
	{"something else", func(t *testing.T, f string) {
		edit(t, f, func(b []byte) []byte { return bytes.Repeat([]byte("text\n"), len(b)/5+1) })
	}, ErrDamaged},
	{"newer format", func(t *testing.T, f string) { setMeta(t, filepath.Dir(f), metaFormat, []byte{Format + 1, 0, 0, 0}) }, ErrNewerFormat},
	{"format 1 with a digest", func(t *testing.T, f string) { setMeta(t, filepath.Dir(f), metaFormat, []byte{1, 0, 0, 0}) }, ErrDamaged},
	{"format 0", func(t *testing.T, f string) { setMeta(t, filepath.Dir(f), metaFormat, []byte{0, 0, 0, 0}) }, ErrDamaged},
	{"short position", func(t *testing.T, f string) { setMeta(t, filepath.Dir(f), metaPos, []byte("pos")) }, ErrDamaged},
	{"zero position", func(t *testing.T, f string) { setMeta(t, filepath.Dir(f), metaPos, make([]byte, 40)) }, ErrDamaged},
	{"long dataset", func(t *testing.T, f string) { setMeta(t, filepath.Dir(f), metaDataset, make([]byte, 17)) }, ErrDamaged},
}

func TestOpenDamaged(t *testing.T) {
	check := func(name string, want error, do func(t *testing.T, dir string)) {
		t.Run(name, func(t *testing.T) {
			dir, _ := sound(t)
			do(t, dir)
			before := tree(t, dir)
			if s, err := Open(dir, Options{}); !errors.Is(err, want) {
				if err == nil {
					closed(t, s)
				}
				t.Errorf("open: %v, want %v", err, want)
			} else {
				t.Log(err)
			}
			if r, err := OpenReader(dir, ReaderOptions{}); err == nil {
				closed(t, r)
				t.Error("a reader opened it")
			}
			if _, err := Check(t.Context(), dir); err == nil {
				t.Error("a check found nothing")
			}
			if !maps.Equal(before, tree(t, dir)) {
				t.Error("the directory was changed")
			}
		})
	}
	for _, d := range damages {
		check(d.name, d.want, func(t *testing.T, dir string) { d.do(t, filepath.Join(dir, nameOf(1), dataFile)) })
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	check("no CURRENT", ErrDamaged, remove(currentFile))
	check("no generation", ErrDamaged, remove(nameOf(1)))
	check("no data file", ErrDamaged, remove(filepath.Join(nameOf(1), dataFile)))
	for _, text := range []string{"", "\n", "gen-000001", "gen-000002\n", "gen-000001\n\n", "gen-0000001\n", "../gen-000001\n", strings.Repeat("x", 1000)} {
		check("CURRENT "+text[:min(10, len(text))], ErrDamaged, func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, currentFile), func([]byte) []byte { return []byte(text) })
		})
	}
}

func TestInstallRefuses(t *testing.T) {
	source, _ := sound(t)
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	apply(t, s, h.begin(), h.entry(put("a", "1")))
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), dataFile)
			if err := copyFile(t.Context(), file, filepath.Join(source, nameOf(1), dataFile), nil); err != nil {
				t.Fatal(err)
			}
			d.do(t, file)
			if _, err := s.Install(t.Context(), file, nil, nil); !errors.Is(err, d.want) {
				t.Errorf("install: %v, want %v", err, d.want)
			}
			if got, err := generations(dir); err != nil || len(got) != 1 {
				t.Errorf("generations left: %v %v", got, err)
			}
			matches(t, s, h)
		})
	}
	if _, err := s.Install(t.Context(), filepath.Join(source, "nothing"), nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("install nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Install(ctx, filepath.Join(source, nameOf(1), dataFile), nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	empty := t.TempDir()
	closed(t, open(t, empty, Options{}))
	if _, err := s.Install(t.Context(), filepath.Join(empty, nameOf(1), dataFile), nil, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("install a store without data: %v", err)
	}
	if got, err := generations(dir); err != nil || len(got) != 1 {
		t.Errorf("generations left: %v %v", got, err)
	}
}

// TestLeftovers opens what a crash leaves at each step of making or replacing
// a generation.
func TestLeftovers(t *testing.T) {
	dir, h := sound(t)
	for _, name := range []string{nameOf(2), nameOf(31)} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(dir, nameOf(1)))); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(dir, "notes.txt")
	for _, file := range []string{filepath.Join(dir, currentFile+".tmp"), other} {
		if err := os.WriteFile(file, []byte("gen-000031\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, Options{})
	matches(t, s, h)
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 3 {
		t.Errorf("in the directory: %v", names)
	}
	closed(t, s)

	for _, left := range []string{"", "no file", "empty file", "no transaction", "half of the first transaction", "unused"} {
		t.Run("a new store, "+left, func(t *testing.T) {
			dir := t.TempDir()
			gen := filepath.Join(dir, nameOf(1))
			switch left {
			case "no file", "empty file":
				if err := os.Mkdir(gen, 0o755); err != nil {
					t.Fatal(err)
				}
				if left == "empty file" {
					if err := os.WriteFile(filepath.Join(gen, dataFile), nil, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			case "no transaction", "half of the first transaction":
				noTransaction(t, gen)
				if left != "no transaction" {
					edit(t, filepath.Join(gen, dataFile), func(b []byte) []byte { return append(b, make([]byte, os.Getpagesize())...) })
				}
			case "unused":
				closed(t, open(t, dir, Options{}))
				if err := os.Remove(filepath.Join(dir, currentFile)); err != nil {
					t.Fatal(err)
				}
			}
			h := newHistory()
			s := open(t, dir, Options{})
			apply(t, s, h.begin(), h.entry(put("a", "1")))
			closed(t, s)
			matches(t, open(t, dir, Options{}), h)
		})
	}
}

// noTransaction makes a generation that LMDB has begun, and nothing else.
func noTransaction(t *testing.T, gen string) {
	t.Helper()
	env, err := newLMDBEnv()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(gen, 0o755), env.Open(gen, 0, 0o644), env.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestCheckFindsWrongValues(t *testing.T) {
	dir, h := sound(t)
	report, err := Check(t.Context(), dir)
	if err != nil || report.Pos != h.pos || report.Pairs != uint64(len(h.model)) {
		t.Fatalf("a sound store: %+v, %v", report, err)
	}
	s := open(t, dir, Options{})
	apply(t, s, h.entry(put("needle", "value")))
	closed(t, s)
	edit(t, filepath.Join(dir, nameOf(1), dataFile), func(b []byte) []byte {
		stored := appendValue([]byte("needle"), []byte("needle"), []byte("value"))
		return bytes.ReplaceAll(b, stored, append(stored[:len(stored)-1:len(stored)-1], 'E'))
	})
	if _, err := Check(t.Context(), dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("check: %v", err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("open, all leaves sampled: %v", err)
	}
	s = open(t, dir, Options{Verify: VerifyQuick})
	if err := s.Damage(); err != nil {
		t.Errorf("damage before it is read: %v", err)
	}
	if _, _, err := s.Get(nil, []byte("needle")); !errors.Is(err, ErrDamaged) {
		t.Errorf("get: %v", err)
	}
	<-s.Damaged()
	if err := s.Damage(); !errors.Is(err, ErrDamaged) {
		t.Errorf("damage: %v", err)
	}
	if _, _, err := s.Get(nil, []byte("another")); !errors.Is(err, ErrDamaged) {
		t.Errorf("get of another key: %v", err)
	}
	if err := s.Apply([]txlog.Entry{h.entry(put("a", "1"))}); !errors.Is(err, ErrDamaged) {
		t.Errorf("apply: %v", err)
	}
	err = s.View(func(tx *Tx) error {
		return tx.Scan(Range{Prefix: []byte("needle")}, func(_, _ []byte) error { return nil })
	})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("scan: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	dir := t.TempDir()
	for range 2 { // the names are free again after Close
		s := open(t, dir, Options{Registerer: reg})
		if _, err := Open(t.TempDir(), Options{Registerer: reg}); err == nil {
			t.Error("two stores share a registry")
		}
		if h := newHistory(); s.State().Pos.IsZero() {
			apply(t, s, h.begin(), h.entry(put("a", "1")))
		}
		err := s.View(func(*Tx) error {
			families, err := reg.Gather()
			got := make(map[string]float64)
			for _, f := range families {
				m := f.GetMetric()[0]
				got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
			for name, least := range map[string]float64{
				"qs_store_applied_seq": 2, "qs_store_entries_applied_total": 0, "qs_store_commit_seconds": 0, "qs_store_map_bytes": 1 << 20,
				"qs_store_file_bytes": 8192, "qs_store_readers": 1, "qs_store_oldest_reader_seconds": 1e-9,
				"qs_store_stale_readers_cleared_total": 0, "qs_store_generation": 1,
			} {
				if v, ok := got[name]; !ok || v < least {
					t.Errorf("%s = %v, %v", name, v, ok)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		closed(t, s)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{MapSize: -1}, {MapSize: 100}, {MaxReaders: -1}, {MaxReaders: 1 << 20}} {
		if _, err := Open(t.TempDir(), o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Options{}); err == nil {
		t.Error("a file was opened as a store")
	}
}
