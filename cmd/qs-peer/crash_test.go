package main

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const crashVar = "QS_CRASH_TEST_DIR"

// TestCrashIsKept crashes a process, and has the next one say so.
func TestCrashIsKept(t *testing.T) {
	if dir := os.Getenv(crashVar); dir != "" {
		if err := keepCrash(dir, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		go func() { panic("as expected") }()
		select {}
	}
	dir := t.TempDir()
	var log bytes.Buffer
	if err := keepCrash(dir, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("nothing had crashed: %s", &log)
	}
	c := exec.Command(os.Args[0], "-test.run=^TestCrashIsKept$")
	c.Env = append(os.Environ(), crashVar+"="+dir)
	if out, err := c.CombinedOutput(); err == nil {
		t.Fatalf("it did not crash: %s", out)
	}
	if err := keepCrash(dir, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "panic: as expected") {
		t.Errorf("said: %s", &log)
	}
	report, err := os.ReadFile(filepath.Join(dir, lastCrash))
	if err != nil || !bytes.Contains(report, []byte("goroutine ")) {
		t.Errorf("kept: %.100s, %v", report, err)
	}
	log.Reset()
	if err := keepCrash(dir, slog.New(slog.NewTextHandler(&log, nil))); err != nil || log.Len() > 0 {
		t.Errorf("the next start: %v, %s", err, &log)
	}
}
