package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// Clean removes what dead benches left, and nothing else.
func TestClean(t *testing.T) {
	dir := t.TempDir()
	mine, err := newScratch(dir)
	check(t, err)
	dead := exec.Command("true")
	check(t, dead.Run())

	here, err := startTime(os.Getpid())
	check(t, err)
	gone := []string{
		fmt.Sprintf("%s%d-%d-1", scratchPrefix, dead.Process.Pid, here),
		fmt.Sprintf("%s%d-%d-2", scratchPrefix, os.Getpid(), here-1), // the id was taken again
	}
	stays := []string{
		filepath.Base(mine),
		scratchPrefix + "notes", scratchPrefix + "1-x-1", scratchPrefix + "-1-1-1", "other-1-1-1",
	}
	for _, name := range slices.Concat(gone, stays[1:]) {
		check(t, os.MkdirAll(filepath.Join(dir, name, "managers"), 0o755))
	}
	file := gone[0] + "9" // a file is not ours: we make directories
	check(t, os.WriteFile(filepath.Join(dir, file), nil, 0o644))
	stays = append(stays, file)

	removed, err := Clean(dir)
	check(t, err)
	if len(removed) != len(gone) {
		t.Errorf("removed %q", removed)
	}
	var left []string
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	slices.Sort(stays)
	if !slices.Equal(left, stays) {
		t.Errorf("left are %q, want %q", left, stays)
	}
	if removed, err := Clean(filepath.Join(dir, "nowhere")); err != nil || removed != nil {
		t.Errorf("a directory that is not there: %q, %v", removed, err)
	}
}
