package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// pair is one line of what is imported and exported.
type pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

var apt sync.Mutex // one at a time may update its lists

// packageIndex returns Debian's package index, name → stanza, from apt's lists.
func packageIndex(t *testing.T) []pair {
	t.Helper()
	apt.Lock()
	defer apt.Unlock()
	out, err := exec.Command("apt-cache", "dumpavail").Output()
	if err != nil {
		t.Fatalf("apt-cache dumpavail: %v (this run needs Debian's package index)", err)
	}
	if len(out) == 0 && os.Getuid() == 0 {
		if msg, err := exec.Command("apt-get", "update", "-qq").CombinedOutput(); err != nil {
			t.Fatalf("apt-get update: %v\n%s", err, msg)
		}
		if out, err = exec.Command("apt-cache", "dumpavail").Output(); err != nil {
			t.Fatal(err)
		}
	}
	var pairs []pair
	for stanza := range strings.SplitSeq(string(out), "\n\n") {
		if name, ok := strings.CutPrefix(strings.SplitN(stanza, "\n", 2)[0], "Package: "); ok {
			pairs = append(pairs, pair{name, strings.ToValidUTF8(stanza, "?")})
		}
	}
	if len(pairs) < 1000 {
		t.Fatalf("apt's lists hold %d stanzas: run apt-get update as root first", len(pairs))
	}
	return pairs
}

// contents returns path → packages of the whole distribution, if apt has the
// Contents files (it does where apt-file is installed).
func contents(t *testing.T) []pair {
	t.Helper()
	lists, err := filepath.Glob("/var/lib/apt/lists/*_Contents-a*")
	if err != nil {
		t.Fatal(err)
	}
	var pairs []pair
	for _, list := range lists {
		cmd := exec.Command("/usr/lib/apt/apt-helper", "cat-file", list)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := lines.Text()
			i := strings.LastIndexAny(line, " \t")
			if path := strings.TrimRight(line[:max(i, 0)], " \t"); path != "" && len(path) <= 511 {
				pairs = append(pairs, pair{strings.ToValidUTF8(path, "?"), line[i+1:]})
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	return pairs
}

// writeLines writes pairs as JSON Lines.
func writeLines(t *testing.T, path string, pairs []pair) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	enc := json.NewEncoder(w)
	for _, p := range pairs {
		if err := enc.Encode(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

// sorted returns what an export of the imported pairs must hold: the last value
// of each key, in the order of the keys' bytes.
func sorted(pairs []pair) []pair {
	last := make(map[string]string, len(pairs))
	for _, p := range pairs {
		last[p.Key] = p.Value
	}
	want := make([]pair, 0, len(last))
	for k, v := range last {
		want = append(want, pair{k, v})
	}
	slices.SortFunc(want, func(a, b pair) int { return strings.Compare(a.Key, b.Key) })
	return want
}

// compareExport checks an export against what was imported.
func compareExport(path string, want []pair) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	dec := json.NewDecoder(bufio.NewReaderSize(f, 1<<20))
	for i := range want {
		var got pair
		if err := dec.Decode(&got); err != nil {
			return fmt.Errorf("%s: pair %d of %d: %w", path, i+1, len(want), err)
		}
		if got != want[i] {
			return fmt.Errorf("%s: pair %d: got key %q (%d bytes), want %q (%d bytes)",
				path, i+1, got.Key, len(got.Value), want[i].Key, len(want[i].Value))
		}
	}
	if err := dec.Decode(new(pair)); err != io.EOF {
		return fmt.Errorf("%s: more than the %d pairs that were imported", path, len(want))
	}
	return nil
}

// sameFile reports whether two files have the same bytes, as cmp would.
func sameFile(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	ba, bb := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		na, ea := io.ReadFull(fa, ba)
		nb, eb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		if ea != nil || eb != nil {
			return ea == eb, nil
		}
	}
}
