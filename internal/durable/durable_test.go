package durable_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/durable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "CURRENT")
	for _, data := range []string{"one", "", "a longer second version", "3"} {
		if err := durable.WriteFile(durable.OS, name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != data {
			t.Fatalf("got %q, %v; want %q", got, err, data)
		}
	}
	wantNames(t, dir, "CURRENT")

	t.Run("overwrites what a crash left under the temporary name", func(t *testing.T) {
		if err := os.WriteFile(name+".tmp", []byte("a much longer left-over of a crash"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(durable.OS, name, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(name); string(got) != "new" {
			t.Fatalf("got %q", got)
		}
	})
	t.Run("leaves nothing behind when it fails", func(t *testing.T) {
		occupied := filepath.Join(dir, "occupied")
		if err := os.MkdirAll(filepath.Join(occupied, "by a directory"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(durable.OS, occupied, []byte("x"), 0o600); err == nil {
			t.Fatal("no error")
		}
		wantNames(t, dir, "CURRENT", "occupied")
	})
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "b", "gen.tmp"} {
		if err := durable.MkdirAll(durable.OS, filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a/f"), []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ from, to string }{
		{"a/f", "a/g"}, // within a directory
		{"a/g", "b/g"}, // across directories
		{"gen.tmp", "gen-1"},
	} {
		if err := durable.Rename(durable.OS, filepath.Join(dir, step.from), filepath.Join(dir, step.to)); err != nil {
			t.Fatalf("%s to %s: %v", step.from, step.to, err)
		}
		if _, err := os.Stat(filepath.Join(dir, step.to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Rename(durable.OS, filepath.Join(dir, "none"), filepath.Join(dir, "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("rename of nothing: %v", err)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := durable.MkdirAll(durable.OS, deep, 0o700); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(deep); err != nil || !info.IsDir() {
			t.Fatal(info, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, filepath.Join(file, "below")} {
		if err := durable.MkdirAll(durable.OS, name, 0o700); err == nil {
			t.Fatalf("%s: no error", name)
		}
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "x", "y"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"f", "x/f", "x/y/f"} {
		if err := os.WriteFile(filepath.Join(tree, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Remove(durable.OS, filepath.Join(tree, "f")); err != nil {
		t.Fatal(err)
	}
	wantNames(t, tree, "x")
	if err := durable.Remove(durable.OS, tree); err == nil {
		t.Fatal("Remove of a directory that is not empty: no error")
	}
	for range 2 { // the second time there is nothing to remove
		if err := durable.RemoveAll(durable.OS, tree); err != nil {
			t.Fatal(err)
		}
		if err := durable.Remove(durable.OS, tree); err != nil {
			t.Fatal(err)
		}
		wantNames(t, dir)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.RemoveAll(durable.OS, file); err != nil {
		t.Fatal(err)
	}
	wantNames(t, dir)
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(want) {
		t.Fatalf("%s holds %v, want %v", dir, entries, want)
	}
	for i, e := range entries {
		if e.Name() != want[i] {
			t.Fatalf("%s holds %v, want %v", dir, entries, want)
		}
	}
}

func TestFreeSpace(t *testing.T) {
	if free := durable.FreeSpace(t.TempDir()); free <= 0 {
		t.Errorf("%d bytes are free where this test has just made a directory", free)
	}
	if free := durable.FreeSpace("/does/not/exist"); free != math.MaxInt64 {
		t.Errorf("%d bytes are free where nothing is known", free)
	}
}
