package heads

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

const golden = `qs-peer head v1
dataset da000000000000000000000000000001
pos 42/0100000000000000000000000000000000000000000000000000000000000000
time 2026-11-23T01:02:03.000000004Z
`

const goldenApplied = `qs-peer head v2
dataset da000000000000000000000000000001
pos 42/0100000000000000000000000000000000000000000000000000000000000000
time 2026-11-23T01:02:03.000000004Z
applied 40/0200000000000000000000000000000000000000000000000000000000000000 030000000000000000000000000000000000000000000000000000000000000a
`

func TestHeadOfWhatWasAppliedGolden(t *testing.T) {
	h := Head{
		Dataset: dataset, Pos: txlog.Pos{Seq: 42, Hash: txlog.Hash{1}}, Time: time.Date(2026, 11, 23, 1, 2, 3, 4, time.UTC),
		Applied: txlog.Pos{Seq: 40, Hash: txlog.Hash{2}}, Digest: [32]byte{3, 31: 10},
	}
	if got := string(h.Encode()); got != goldenApplied {
		t.Errorf("encoded:\n%s", got)
	}
	if got, err := Parse([]byte(goldenApplied)); err != nil || got != h {
		t.Errorf("parsed %+v, %v", got, err)
	}
	h.Applied, h.Digest = h.Pos, [32]byte{} // all of it, and no pairs are left
	if got, err := Parse(h.Encode()); err != nil || got != h {
		t.Errorf("parsed %+v, %v", got, err)
	}
	change := func(old, new string) string { return strings.Replace(goldenApplied, old, new, 1) }
	for name, text := range map[string]string{
		"version 1 with a digest":  change("v2", "v1"),
		"a newer version":          change("v2", "v3"),
		"no digest":                strings.Split(goldenApplied, " 0300")[0] + "\n",
		"no line":                  strings.Split(goldenApplied, "applied")[0],
		"no end":                   strings.TrimSuffix(goldenApplied, "\n"),
		"a line more":              goldenApplied + "x\n",
		"a short digest":           change(" 03", " "),
		"a long digest":            change(" 03", " 0303"),
		"upper case":               change("0a\n", "0A\n"),
		"no digits":                change("0a\n", "0g\n"),
		"two spaces":               change(" 03", "  03"),
		"seq 0":                    change("applied 40", "applied 0"),
		"nothing applied":          change("applied 40/02", "applied 0/00"),
		"no hash":                  change("40/02", "40/00"),
		"beyond the log":           change("applied 40", "applied 43"),
		"another end than the log": change("applied 40", "applied 42"),
	} {
		if h, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: parsed as %+v", name, h)
		}
	}
}

func TestHeadGolden(t *testing.T) {
	h := Head{Dataset: dataset, Pos: txlog.Pos{Seq: 42, Hash: txlog.Hash{1}}, Time: time.Date(2026, 11, 23, 1, 2, 3, 4, time.UTC)}
	if got := string(h.Encode()); got != golden {
		t.Errorf("encoded:\n%s", got)
	}
	if got, err := Parse([]byte(golden)); err != nil || got != h {
		t.Errorf("parsed %+v, %v", got, err)
	}
	// The clock's zone is not part of what is signed.
	h.Time = h.Time.In(time.FixedZone("", 3600))
	if got := string(h.Encode()); got != golden {
		t.Errorf("encoded in another zone:\n%s", got)
	}
}

func TestHeadRefused(t *testing.T) {
	change := func(old, new string) string { return strings.Replace(golden, old, new, 1) }
	for name, text := range map[string]string{
		"nothing":          "",
		"another version":  change("v1", "v2"),
		"a manifest":       change("qs-peer head v1", "qs-snapshot-v1"),
		"no end":           strings.TrimSuffix(golden, "\n"),
		"a line more":      golden + "x\n",
		"an empty line":    golden + "\n",
		"lines swapped":    change("dataset", "pos"),
		"only a beginning": golden[:40],
		"upper case":       change("da00", "DA00"),
		"no dataset":       change("da000000000000000000000000000001", strings.Repeat("0", 32)),
		"a short dataset":  change("da00", "da"),
		"seq 0":            change("pos 42", "pos 0"),
		"a leading zero":   change("pos 42", "pos 042"),
		"a sign":           change("pos 42", "pos +42"),
		"no hash":          change("42/01", "42/00"),
		"two spaces":       change("pos 42", "pos  42"),
		"a tab":            change("pos 42", "pos\t42"),
		"CRLF":             strings.ReplaceAll(golden, "\n", "\r\n"),
		"another zone":     change("03.000000004Z", "03.000000004+01:00"),
		"trailing zeros":   change("000000004Z", "0000000040Z"),
		"no time":          change("time 2026-11-23T01:02:03.000000004Z", "time "),
		"long":             golden + strings.Repeat("x", MaxNote),
	} {
		if h, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: parsed as %+v", name, h)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(goldenApplied))
	f.Add([]byte(golden[:60]))
	f.Add([]byte(magic + "\n\n\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := Parse(text)
		if err == nil && !bytes.Equal(h.Encode(), text) {
			t.Fatalf("%q and %q are one head", text, h.Encode())
		}
	})
}
