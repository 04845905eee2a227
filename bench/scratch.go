package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// MemoryDir is where nodes keep their data by default: in memory, because
// machines that have a disk each would share one here.
const MemoryDir = "/dev/shm"

// scratchPrefix is the name of every directory that a bench makes; the process
// that owns it and the time that it started, in clock ticks since boot, follow.
const scratchPrefix = "qs-peer-bench-"

// newScratch makes a directory of this process below dir.
func newScratch(dir string) (string, error) {
	pid := os.Getpid()
	started, err := startTime(pid)
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(dir, fmt.Sprintf("%s%d-%d-", scratchPrefix, pid, started))
}

// Clean removes from dir what benches left there that were killed, and returns
// what it was. Nothing else of a killed bench is left: its processes and its
// network are the kernel's to end.
func Clean(dir string) (removed []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, started, ok := scratchOwner(e.Name())
		if !ok || !e.IsDir() {
			continue
		}
		if now, err := startTime(pid); err == nil && now == started {
			continue // it runs
		}
		path := filepath.Join(dir, e.Name())
		if err := os.RemoveAll(path); err != nil {
			return removed, fmt.Errorf("remove what a killed bench left: %w", err)
		}
		removed = append(removed, path)
	}
	return removed, nil
}

// scratchOwner parses the name of a directory of a bench.
func scratchOwner(name string) (pid int, started uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, scratchPrefix)
	fields := strings.Split(rest, "-")
	if !ok || len(fields) != 3 {
		return 0, 0, false
	}
	pid, errPID := strconv.Atoi(fields[0])
	started, errStarted := strconv.ParseUint(fields[1], 10, 64)
	return pid, started, errPID == nil && errStarted == nil
}

// startTime returns when a process started, in clock ticks since boot
// (proc_pid_stat(5)).
func startTime(pid int) (uint64, error) {
	fields, err := lab.Stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[22], 10, 64)
}
