package snapshot

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

var update = flag.Bool("update", false, "rewrite golden files")

func exampleManifest() *Manifest {
	return &Manifest{
		Dataset:     txlog.DatasetID(bytes.Repeat([]byte{0xd5}, 16)),
		Pos:         txlog.Pos{Seq: 8123, Hash: sha256.Sum256([]byte("entry 8123"))},
		Time:        time.Date(2026, 11, 22, 17, 0, 1, 123450000, time.UTC),
		Format:      1,
		Pairs:       64123,
		Size:        98304000,
		SHA256:      sha256.Sum256([]byte("file")),
		InfoHash:    chunker.InfoHash(bytes.Repeat([]byte{0xab}, 20)),
		PieceLength: 1 << 18,
		PieceRoot:   sha256.Sum256([]byte("pieces")),
	}
}

func TestManifestGolden(t *testing.T) {
	golden := filepath.Join("testdata", "golden.manifest")
	m := exampleManifest()
	if *update {
		if err := os.WriteFile(golden, m.Encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Encode(); !bytes.Equal(got, want) {
		t.Errorf("Encode:\n%s\nwant:\n%s", got, want)
	}
	got, err := ParseManifest(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("ParseManifest = %+v, want %+v", got, m)
	}
}

func TestManifestRefused(t *testing.T) {
	good := string(exampleManifest().Encode())
	replace := func(old, new string) string {
		t.Helper()
		if strings.Count(good, old) != 1 {
			t.Fatalf("%q is not there exactly once", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":                {"", "begins with"},
		"other version":        {replace("qs-snapshot-v1", "qs-snapshot-v2"), "this version reads"},
		"cut short":            {good[:len(good)-1], "canonical"},
		"cut in the middle":    {good[:100], "line 3"},
		"line missing":         {replace("format 1\n", ""), "line 5"},
		"line twice":           {replace("format 1\n", "format 1\nformat 1\n"), "line 6"},
		"lines swapped":        {replace("format 1\npairs 64123\n", "pairs 64123\nformat 1\n"), "line 5"},
		"line added":           {good + "x 1\n", "canonical"},
		"blank at the end":     {good + "\n", "canonical"},
		"carriage returns":     {strings.ReplaceAll(good, "\n", "\r\n"), "begins with"},
		"two spaces":           {replace("pairs 64123", "pairs  64123"), "line 6"},
		"leading zero":         {replace("pairs 64123", "pairs 064123"), "canonical"},
		"plus sign":            {replace("size 98304000", "size +98304000"), "canonical"},
		"negative":             {replace("size 98304000", "size -1"), "less than 1"},
		"no size":              {replace("size 98304000", "size 0"), "less than 1"},
		"too big":              {replace("pairs 64123", "pairs 18446744073709551616"), "line 6"},
		"upper case":           {replace("infohash abab", "infohash ABab"), "canonical"},
		"hash too short":       {replace("infohash abab", "infohash ab"), "40 hexadecimal"},
		"not a digit":          {replace("infohash abab", "infohash xbab"), "invalid byte"},
		"local time":           {replace("17:00:01.12345Z", "18:00:01.12345+01:00"), "canonical"},
		"nanoseconds padded":   {replace("01.12345Z", "01.123450000Z"), "canonical"},
		"no time":              {replace("T17:00:01.12345Z", ""), "line 4"},
		"no dataset":           {replace(strings.Repeat("d5", 16), strings.Repeat("00", 16)), "no dataset"},
		"position 0":           {replace("pos 8123/", "pos 0/"), "where there is nothing"},
		"odd piece length":     {replace("piece-length 262144", "piece-length 262143"), "power of two"},
		"no piece root":        {good[:strings.Index(good, "piece-root")], `line 11 is ""; want "piece-root"`},
		"short piece root":     {replace("piece-root ", "piece-root 00"), "line 11 (piece-root): want 64 hexadecimal"},
		"longer than allowed":  {good + strings.Repeat("x", MaxManifest), "at most 4096"},
		"value from elsewhere": {replace("sha256 ", "sha256 00"), "64 hexadecimal"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ParseManifest([]byte(c.text))
			if err == nil {
				t.Fatalf("accepted as %+v", m)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %q, which does not say %q", err, c.want)
			}
		})
	}
}

func FuzzParseManifest(f *testing.F) {
	good := exampleManifest().Encode()
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(bytes.ToUpper(good))
	f.Add([]byte("qs-snapshot-v1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseManifest(text)
		if err != nil {
			return
		}
		if got := m.Encode(); !bytes.Equal(got, text) {
			t.Errorf("read\n%s\nwrote\n%s", text, got)
		}
	})
}

func TestName(t *testing.T) {
	pos := exampleManifest().Pos
	name := Name(pos)
	if want := "snapshot-00000000000000008123-"; !strings.HasPrefix(name, want) || len(name) != len(want)+16 {
		t.Errorf("Name = %q", name)
	}
	got, seq, ext, ok := splitName(name + ".mdb.damaged")
	if got != name || seq != pos.Seq || ext != ".mdb.damaged" || !ok {
		t.Errorf("splitName = %q, %d, %q, %t", got, seq, ext, ok)
	}
	for _, file := range []string{"", "lost+found", "snapshot-1-2.mdb", name, "x" + name + ".mdb", strings.ReplaceAll(name, "0", "x") + ".mdb"} {
		if _, _, _, ok := splitName(file); ok {
			t.Errorf("splitName(%q) accepted", file)
		}
	}
}
