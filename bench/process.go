package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// processTime returns the processor time that a running process has used, to the
// 10 ms that Linux tells (proc_pid_stat(5)).
func processTime(pid int) (time.Duration, error) {
	fields, err := lab.Stat(pid)
	if err != nil {
		return 0, err
	}
	user, err := strconv.Atoi(fields[14])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[15])
	return time.Duration(user+system) * 10 * time.Millisecond, err
}

// memory is what a process holds, in bytes.
type memory struct {
	anon int64 // RssAnon: without what is mapped from files
	peak int64 // VmHWM: the most that was resident, mapped files included
}

// processMemory returns zeroes for a process that has ended.
func processMemory(pid int) (m memory) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		switch name {
		case "RssAnon":
			m.anon = kib << 10
		case "VmHWM":
			m.peak = kib << 10
		}
	}
	return m
}

// forgetPeak makes VmHWM count from now on (proc_pid_clear_refs(5)).
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// machineTime returns how long the machine's processors worked since boot, all
// together, and how long they could have (proc_stat(5)). What a host took away
// from a virtual machine counts as work.
func machineTime() (worked, all time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, field := range fields[1:9] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		t := time.Duration(ticks) * 10 * time.Millisecond
		all += t
		if i != 3 && i != 4 { // idle, iowait
			worked += t
		}
	}
	return worked, all, nil
}
