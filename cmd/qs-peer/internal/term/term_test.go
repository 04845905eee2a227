package term

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Bytes(0), "0 B"}, {Bytes(1023), "1023 B"}, {Bytes(1024), "1.0 KiB"}, {Bytes(18_700_000), "17.8 MiB"},
		{Bytes(1023 << 10), "1.0 MiB"}, {Bytes(1 << 62), "4096.0 PiB"},
		{Count(0), "0"}, {Count(999), "999"}, {Count(1000), "1,000"}, {Count(1234567), "1,234,567"}, {Count(-1234), "-1,234"}, {Count(-123), "-123"},
		{Plural(1, "pair"), "1 pair"}, {Plural(0, "pair"), "0 pairs"}, {Plural(1000, "pair"), "1,000 pairs"},
		{Duration(1234567 * time.Microsecond), "1.23s"}, {Duration(45678 * time.Microsecond), "45.7ms"}, {Duration(0), "0s"},
		{Bar(0, 4), "░░░░"}, {Bar(1, 4), "████"}, {Bar(0.5, 4), "██░░"}, {Bar(0.54, 4), "██▏░"}, {Bar(7, 2), "██"}, {Bar(-1, 2), "░░"},
		{Clip("abcdef", 4), "abc…"}, {Clip("abc", 4), "abc"}, {Clip("abc", 0), ""},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestTable(t *testing.T) {
	table := Table{
		Header: []string{"NAME", ">SIZE", "STATE"},
		Rows: [][]Cell{
			{{Text: "ä"}, {Text: "1"}, {Text: "serving", Style: Green}},
			{{Text: "worker-10"}, {Text: "1,000"}, {Text: ""}},
		},
	}
	want := []string{
		"NAME        SIZE  STATE",
		"ä              1  serving",
		"worker-10  1,000",
	}
	if got := table.Lines(false, 0); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	for _, line := range table.Lines(false, 12) {
		if n := len([]rune(line)); n > 12 {
			t.Errorf("%q is %d cells wide", line, n)
		}
	}
	if got := table.Lines(true, 0)[1]; !strings.Contains(got, "\x1b[32mserving\x1b[0m") {
		t.Errorf("no colour in %q", got)
	}
}

// Without a terminal, a board writes one line per state and no escapes.
func TestBoardInAPipe(t *testing.T) {
	var out bytes.Buffer
	b := NewBoard(context.Background(), &out, []string{"a", "bb"})
	b.Set(0, 0.1, "starting", Dim, "")
	b.Set(0, 0.2, "starting", Dim, "more")
	b.Set(1, 0.5, "bootstrapping", Yellow, "1 B")
	b.Finish(0, "serving", Green, "")
	b.Close()
	text := out.String()
	if n := strings.Count(text, "\n"); n != 3 || strings.Contains(text, "\x1b") {
		t.Errorf("%d lines:\n%s", n, text)
	}
	for _, want := range []string{"a  ", "bb ", "starting", "bootstrapping, 1 B", "serving"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing:\n%s", want, text)
		}
	}
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{
		"": "''", "/a/b-c_d.e:1,2": "/a/b-c_d.e:1,2", "a b": "'a b'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "é": "'é'", "a\nb": "'a\nb'",
	} {
		if got := ShellWord(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}
