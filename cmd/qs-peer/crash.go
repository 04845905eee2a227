package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
)

const (
	crashFile = "crash.txt"      // of this process, empty unless it crashes
	lastCrash = "last-crash.txt" // of the last process that did
)

// keepCrash has the runtime write to a file in the data directory, beside standard
// error, what ends this process: a panic, or a fault that nobody expected. What an
// earlier process left there is said and kept.
func keepCrash(dir string, log *slog.Logger) error {
	path := filepath.Join(dir, crashFile)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the report of a crash: %w", err)
	}
	if len(text) > 0 {
		kept := filepath.Join(dir, lastCrash)
		if err := os.Rename(path, kept); err != nil {
			return fmt.Errorf("keep the report of a crash: %w", err)
		}
		why, _, _ := bytes.Cut(text, []byte("\n"))
		log.Error("the last process on this data directory crashed", "why", string(why[:min(len(why), 200)]), "report", kept)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("make a place for the report of a crash: %w", err)
	}
	defer f.Close() // the runtime has its own descriptor
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}
