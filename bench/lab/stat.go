package lab

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Stat returns the fields of /proc/PID/stat (proc_pid_stat(5)) by their numbers
// there, of which it has at least 22. The first two, which are the process's id
// and its name, are empty.
func Stat(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The name, in parentheses, may hold anything.
	fields := append(make([]string, 3), strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))...)
	if len(fields) <= 22 {
		return nil, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields)-1)
	}
	return fields, nil
}
