package torture

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestFileKinds: each kind of file is damaged, or it says why not; every part is of some
// kind, and is damaged; what no kind describes is found.
func TestFileKinds(t *testing.T) {
	weights := map[part]int{sealedFile: 1}
	for _, k := range fileKinds {
		if (k.part == "") == (k.why == "") {
			t.Errorf("%s: damaged as %q, not because %q", k.pattern, k.part, k.why)
		}
		if k.part != "" {
			weights[k.part] += 0
		}
	}
	for _, w := range damageWeights {
		if _, ok := weights[w.part]; !ok {
			t.Errorf("no file is a %s", w.part)
		}
		weights[w.part] = w.weight
	}
	for p, weight := range weights {
		if weight == 0 {
			t.Errorf("no %s is ever damaged", p)
		}
	}

	data := t.TempDir()
	const name = "snapshot-0000000000000007-00112233445566778899aabbccddeeff"
	for _, file := range []string{
		"LOCK", "log/00000000000000000001.log", "log/00000000000000000044.log", "store/CURRENT", "store/gen-000002/data.mdb", "store/gen-000001/data.mdb",
		"store/gen-000002.damaged/data.mdb", "snapshots/" + name + ".part", "snapshots/" + name + ".piece-3.damaged", "restoring/store/CURRENT",
		"store/gen-000002/other.mdb", "log/4711.idx", "snapshots/" + name + ".notes", "snapshots/" + name + "2.notes",
	} {
		path := filepath.Join(data, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("gen-000002\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := strangeFiles(data), []string{"log/N.idx", "snapshots/snapshot-N-N.notes", "store/gen-N/other.mdb"}; !slices.Equal(got, want) {
		t.Errorf("strange: %q, want %q", got, want)
	}
	for p, want := range map[part]string{storeFile: "gen-000002/data.mdb", sealedFile: "log/00000000000000000001.log", partialFile: name + ".part"} {
		if got := p.files(data); len(got) != 1 || filepath.Join(filepath.Base(filepath.Dir(got[0])), filepath.Base(got[0])) != want && filepath.Base(got[0]) != want {
			t.Errorf("%s: %q, want %s", p, got, want)
		}
	}
	if got := logFile.files(data); len(got) != 2 {
		t.Errorf("log: %q", got)
	}
}

// TestBadPieces: cut off pieces are bad, what is appended is in none.
func TestBadPieces(t *testing.T) {
	const size = 64 << 10
	was := make([]byte, 3*size+100)
	for name, c := range map[string]struct {
		is   []byte
		want int
	}{
		"the same": {was, 0},
		"grown":    {append(was[:len(was):len(was)], 1, 2, 3), 0},
		"a bit":    {flipped(was, 2*size, 1), 1},
		"two":      {flipped(flipped(was, size-1, 1), size, 1), 2},
		"the last": {flipped(was, 3*size+99, 1), 1},
		"cut":      {was[:size+1], 3},
		"emptied":  {nil, 4},
	} {
		if got := badPieces(was, c.is); got != c.want {
			t.Errorf("%s: %d bad pieces, want %d", name, got, c.want)
		}
	}
}
