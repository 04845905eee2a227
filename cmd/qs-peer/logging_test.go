package main

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

func TestConsoleLines(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newConsole(&out, slog.LevelInfo, false)).With("part", "replica")
	log.Debug("not shown")
	log.Info("state changed", "state", "serving", "reason", "two words", "pos", "7/"+strings.Repeat("0123456789abcdef", 4))
	log.WithGroup("g").Warn("bare", "msg", "kept")
	slog.New(newConsole(&out, slog.LevelInfo, true)).Error("red")
	want := []string{
		`^\d\d:\d\d:\d\d\.\d{3} INFO  state changed  part=replica state=serving reason="two words" pos=7/0123456789ab…$`,
		`^\d\d:\d\d:\d\d\.\d{3} WARN  bare  part=replica g\.msg=kept$`,
		`^\x1b\[2m.*\x1b\[31mERROR\x1b\[0m red$`,
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d lines:\n%s", len(got), out.String())
	}
	for i := range want {
		if !regexp.MustCompile(want[i]).MatchString(got[i]) {
			t.Errorf("line %q does not match %q", got[i], want[i])
		}
	}
}
