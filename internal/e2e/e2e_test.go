// Package e2e runs a whole fleet as an operator would: the real binary, real
// processes, Debian's package index as data. `make e2e` runs it; `go test ./...`
// alone does not, because it needs the binary and Debian's tools.
package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// minted is what `snapshot --json` prints.
type minted struct {
	Seq                    uint64
	Hash, Infohash, SHA256 string
	Size                   int64
	Pairs                  uint64
}

// TestFleet is one story, in steps that build on each other.
func TestFleet(t *testing.T) {
	mode := os.Getenv("QS_E2E")
	if mode == "" {
		t.Skip("needs the built binary and Debian's package index: run make e2e")
	}
	t.Parallel()
	pairs := packageIndex(t)
	if mode == "full" {
		more := contents(t)
		if len(more) == 0 {
			t.Log("no Contents lists: apt-get install apt-file && apt-get update adds millions of small pairs")
		}
		pairs = append(pairs, more...)
	}
	want := sorted(pairs)
	t.Logf("input: %d pairs, %d different keys", len(pairs), len(want))

	f := newStory(t, os.Getenv("QS_PEER"), true)
	m1 := f.start("manager", "m1")
	m2 := f.start("manager", "m2")
	managers := []string{"m1", "m2"}
	var workers []string
	for i := range 8 {
		workers = append(workers, fmt.Sprintf("w%d", i+1))
	}
	for _, w := range workers {
		f.start("worker", w)
	}
	everyone := append(append([]string{}, managers...), workers...)

	step(t, "import while everybody runs", func() {
		first, second := filepath.Join(f.dir, "first.jsonl"), filepath.Join(f.dir, "second.jsonl")
		writeLines(t, first, pairs[:len(pairs)/2])
		writeLines(t, second, pairs[len(pairs)/2:])
		t.Log(strings.TrimSpace(f.run("import", "--addr", m1.Addrs.HTTP, "--json", first)))
		f.run("snapshot", "--addr", m1.Addrs.HTTP)
		t.Log(strings.TrimSpace(f.run("import", "--addr", m1.Addrs.HTTP, "--json", second)))
		f.converged(2*time.Minute, m1, everyone...)
	})

	var snap minted
	step(t, "both managers' snapshots at one position are one torrent", func() {
		// The follower first: it would mirror the writer's instead of minting.
		other := f.snapshot(m2)
		if snap = f.snapshot(m1); other != snap {
			t.Fatalf("m1 minted %+v\nm2 minted %+v", snap, other)
		}
		if snap.Pairs != uint64(len(want)) {
			t.Fatalf("the snapshot holds %d pairs, want %d", snap.Pairs, len(want))
		}
		t.Logf("snapshot: %d bytes, %d pairs, infohash %s", snap.Size, snap.Pairs, snap.Infohash)
	})

	step(t, "all workers are wiped and rebuilt while writes arrive", func() {
		f.rebuild(workers...)
		for i := range 20 {
			p := pair{fmt.Sprintf("zz-e2e-%02d", i), strings.Repeat("x", i)}
			f.run("put", "--addr", m1.Addrs.HTTP, p.Key, p.Value)
			want = append(want, p)
		}
		want = sorted(want)
		began := time.Now()
		var managers, swarm int64
		for name, x := range f.converged(2*time.Minute, m1, everyone...) {
			if strings.HasPrefix(name, "w") {
				managers += x.BytesFromManagers
				swarm += x.BytesFromWorkers
			}
		}
		t.Logf("rebuilt in %s after the last write; manager egress %.2f copies, %.2f copies between workers",
			time.Since(began).Round(time.Millisecond), float64(managers)/float64(snap.Size), float64(swarm)/float64(snap.Size))
		if total := managers + swarm; total < 8*snap.Size {
			t.Fatalf("8 rebuilt workers account for %d bytes received, want at least %d", total, 8*snap.Size)
		}
	})

	step(t, "every node's export is the imported data, byte for byte", func() { f.exports(want, everyone) })

	step(t, "without the follower all goes on", func() {
		m2.Kill()
		f.run("put", "--addr", m1.Addrs.HTTP, "zz-without-m2", "1")
		want = append(want, pair{"zz-without-m2", "1"})
		f.rebuild("w8")
		f.converged(time.Minute, m1, append([]string{"m1"}, workers...)...)
		f.start("manager", "m2")
		f.converged(time.Minute, m1, everyone...)
	})

	step(t, "without the writer everybody serves, and a worker is still rebuilt", func() {
		m1.Kill()
		f.rebuild("w7")
		f.converged(time.Minute, m2, append([]string{"m2"}, workers...)...)
		f.exports(want, append([]string{"m2"}, workers...))
		if _, err := f.try("put", "--addr", m2.Addrs.HTTP, "zz-refused", "1"); err == nil {
			t.Fatal("the follower took a write")
		}
		f.start("manager", "m1")
		f.converged(time.Minute, m1, everyone...)
	})

	step(t, "stopped, every data directory verifies; with one byte changed it does not", func() {
		for _, name := range everyone {
			if err := f.Node(name).Stop(); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range everyone {
			f.run("verify", "--data", f.Node(name).Data)
		}
		found, err := filepath.Glob(filepath.Join(m1.Data, "snapshots", "*.mdb"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no snapshot in %s (%v)", m1.Data, err)
		}
		flip(t, found[0], 12345)
		out, err := f.try("verify", "--data", m1.Data)
		if err == nil || !strings.Contains(err.Error(), filepath.Base(found[0])) {
			t.Fatalf("verify did not name the damaged file: %v\n%s", err, out)
		}
	})
}

// TestStockClient has aria2 download what a manager publishes. It speaks no TLS, and
// so neither does the manager.
func TestStockClient(t *testing.T) {
	if os.Getenv("QS_E2E") == "" {
		t.Skip("needs the built binary and Debian's package index: run make e2e")
	}
	t.Parallel()
	f := newStory(t, os.Getenv("QS_PEER"), false)
	m := f.start("manager", "m")
	input := filepath.Join(f.dir, "input.jsonl")
	writeLines(t, input, packageIndex(t))
	f.run("import", "--addr", m.Addrs.HTTP, input)
	f.aria2(m, f.snapshot(m))
}

func step(t *testing.T, what string, do func()) {
	t.Helper()
	began := time.Now()
	do()
	t.Logf("ok  %-70s %8s", what, time.Since(began).Round(time.Millisecond))
}

func (f *story) snapshot(n *fleet.Node) minted {
	f.t.Helper()
	var m minted
	if err := json.Unmarshal([]byte(f.run("snapshot", "--addr", n.Addrs.HTTP, "--json")), &m); err != nil {
		f.t.Fatal(err)
	}
	return m
}

// exports compares every node's export with the data, and all with the first.
func (f *story) exports(want []pair, names []string) {
	f.t.Helper()
	want = sorted(want)
	var first string
	for i, name := range names {
		path := filepath.Join(f.dir, name+".export")
		f.run("export", "--addr", f.Node(name).Addrs.HTTP, path)
		if i == 0 {
			first = path
			if err := compareExport(path, want); err != nil {
				f.t.Fatal(err)
			}
			continue
		}
		if same, err := sameFile(first, path); err != nil || !same {
			f.t.Fatalf("the exports of %s and %s differ (%v)", names[0], name, err)
		}
	}
}

// aria2 gives our torrent to a stock client, which finds the node through a
// tracker of the test's own, and compares what it downloads.
func (f *story) aria2(n *fleet.Node, snap minted) {
	t := f.t
	t.Helper()
	host, port, err := net.SplitHostPort(n.Addrs.Swarm)
	if err != nil {
		t.Fatal(err)
	}
	var portNumber int
	if _, err := fmt.Sscan(port, &portNumber); err != nil {
		t.Fatal(err)
	}
	tracker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer := append(net.ParseIP(host).To4(), byte(portNumber>>8), byte(portNumber))
		fmt.Fprintf(w, "d8:intervali60e5:peers6:%se", []byte(peer))
	}))
	defer tracker.Close()

	resp, err := http.Get("http://" + n.Addrs.HTTP + "/v1/snapshots/" + snap.Infohash + "/torrent")
	if err != nil {
		t.Fatal(err)
	}
	metainfo, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.HasPrefix(metainfo, []byte("d4:info")) {
		t.Fatalf("GET torrent: %s, %v, %.40q", resp.Status, err, metainfo)
	}
	// Our metainfo names no tracker: put one before the info dictionary.
	withTracker := fmt.Sprintf("d8:announce%d:%s%s", len(tracker.URL), tracker.URL, metainfo[1:])
	dir := t.TempDir()
	torrent := filepath.Join(dir, "snapshot.torrent")
	if err := os.WriteFile(torrent, []byte(withTracker), 0o644); err != nil {
		t.Fatal(err)
	}
	// Its default is to listen on a free port of 6881 to 6999.
	out, err := exec.Command("aria2c", "--no-conf", "--dir", dir, "--enable-dht=false", "--enable-dht6=false",
		"--bt-enable-lpd=false", "--enable-peer-exchange=false", "--seed-time=0", "--bt-stop-timeout=60",
		"--interface=127.0.0.1", "--quiet", "--log", filepath.Join(f.dir, "aria2.log"), "--log-level=info", torrent).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(f.dir, "aria2.log"))
		t.Fatalf("aria2c: %v\n%s%s", err, out, log[max(0, len(log)-8000):])
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.mdb"))
	if err != nil || len(files) != 1 {
		t.Fatalf("aria2c left %v (%v)\n%s", files, err, out)
	}
	if got := sum(t, files[0]); got != snap.SHA256 {
		t.Fatalf("aria2 downloaded a file of SHA-256 %s, want %s", got, snap.SHA256)
	}
	// And LMDB's own tools open it.
	stat, err := exec.Command("mdb_stat", "-n", "-s", "kv", files[0]).CombinedOutput()
	if err != nil || !strings.Contains(string(stat), fmt.Sprintf("Entries: %d", snap.Pairs)) {
		t.Fatalf("mdb_stat: %v\n%s", err, stat)
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// flip changes one bit of a file.
func flip(t *testing.T, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}
