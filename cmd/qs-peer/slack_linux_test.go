package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTimerSlack: all threads of this program, the runtime's monitor among them, let
// the kernel put off the ends of their sleeps.
func TestTimerSlack(t *testing.T) {
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(threads) == 0 {
		t.Fatal(threads, err)
	}
	known := 0
	for _, thread := range threads {
		// Of other threads it is told to those only who might set it.
		got, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		known++
		if ns := strings.TrimSpace(string(got)); ns != "1000000" {
			t.Errorf("thread %s: %s ns", thread, ns)
		}
	}
	t.Logf("%d of %d threads", known, len(threads))
	if known == 0 {
		t.Skip("the kernel does not say: needs CAP_SYS_NICE")
	}
}
