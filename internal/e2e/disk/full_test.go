package disk

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// TestFullDisk fills a node's disk at each stage of what it writes.
func TestFullDisk(t *testing.T) {
	for _, kind := range kinds() {
		for name, run := range map[string]func(*testing.T, string){
			"start": fullAtStart, "bootstrap": fullAtBootstrap, "follower": fullFollower, "writer": fullWriter, "mint": fullAtMint,
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				run(t, kind)
			})
		}
	}
}

// fullAtStart is about a worker that has hardly room for its files.
func fullAtStart(t *testing.T, kind string) {
	c := newCast(t)
	m := c.start("manager", "m1", "--snapshot-every", "0")
	c.mustWrite(m, 100*kib)
	for _, left := range []int64{0, 16 * kib, 40 * kib, 100 * kib, 200 * kib, 400 * kib} {
		name := fmt.Sprintf("w%d", left/kib)
		d := newDisk(t, kind, 16)
		c.on(d, name)
		d.leave(left)
		w, err := c.Start(t.Context(), "worker", name)
		switch {
		case err == nil:
			c.eventually("it says that the disk is full, or has room enough", func() error {
				if text, _ := os.ReadFile(w.Log); strings.Contains(string(text), "no space left") {
					t.Logf("%d KiB: it waits", left/kib)
					return nil
				}
				return ready(t, w)
			})
			c.alive(w)
			d.clear()
		case strings.Contains(err.Error(), "no space left") && strings.Contains(err.Error(), name):
			t.Logf("%d KiB: %s", left/kib, last(err.Error(), 1))
			d.clear()
			w = c.start("worker", name)
		default:
			t.Fatalf("with %d KiB: %v", left/kib, err)
		}
		c.converged(m, "m1", name)
		c.holdsAll(w)
		w.Kill()
		c.verify(w)
	}
}

// fullAtMint is about a disk that fills while a snapshot is minted.
func fullAtMint(t *testing.T, kind string) {
	c := newCast(t)
	d := newDisk(t, kind, 64)
	c.on(d, "m1")
	m := c.start("manager", "m1", "--snapshot-every", "0", "--mint-rate", "2MB/s")
	c.mustWrite(m, 6*mib)
	minted := make(chan error, 1)
	go func() { minted <- c.mint(m) }()
	c.has(m, "snapshots/*.mint", mib)
	d.leave(0)
	err := <-minted
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("the mint on a full disk: %v", err)
	}
	t.Log(err)
	c.eventually("nothing is left of it", func() error {
		if all, _ := os.ReadDir(filepath.Join(m.Data, "snapshots")); len(all) > 0 {
			return fmt.Errorf("there is %s", all[0].Name())
		}
		return nil
	})
	c.holdsAll(m)
	c.alive(m)
	d.clear()
	if err := c.mint(m); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	c.verify(m)
}

// fullAtBootstrap is about a worker that begins with a disk too small for what
// it fetches.
func fullAtBootstrap(t *testing.T, kind string) {
	c := newCast(t)
	m := c.start("manager", "m1", "--snapshot-every", "0")
	c.mustWrite(m, 6*mib)
	var snap struct{ Size int64 }
	if err := c.post(m, "/v1/snapshots", nil, &snap); err != nil {
		t.Fatal(err)
	}
	c.mustWrite(m, 100*kib)

	for _, stage := range []struct {
		what  string
		leave int64
	}{
		{"no room for the file that is fetched", snap.Size / 2},
		{"no room for its copy", snap.Size + snap.Size/2},
		{"just no room for its copy", 2*snap.Size - 8*kib},
	} {
		t.Run(stage.what, func(t *testing.T) {
			c := *c
			c.t = t
			d := newDisk(t, kind, 64)
			name := fmt.Sprintf("w%d", stage.leave/kib)
			c.on(d, name)
			d.leave(stage.leave)
			w := c.start("worker", name)
			t.Cleanup(w.Kill)
			line := c.says(w, 0, "no space left")
			t.Log(strings.TrimSpace(line))
			c.alive(w)
			w.Kill()
			c.verify(w)
			w = c.start("worker", name)
			c.says(w, 0, "no space left")
			d.clear()
			c.converged(m, "m1", name)
			c.alive(w)
			c.holdsAll(w)
		})
	}
	t.Run("the disk fills while the file is fetched", func(t *testing.T) {
		c := *c
		c.t = t
		d := newDisk(t, kind, 64)
		c.on(d, "late")
		w := c.start("worker", "late", "--download-rate", "2MB/s")
		t.Cleanup(w.Kill)
		c.fetched(w, 0.25)
		d.leave(0)
		t.Log(strings.TrimSpace(c.says(w, 0, "no space left")))
		w.Kill()
		c.verify(w)
		d.clear()
		w = c.start("worker", "late")
		c.converged(m, "m1", "late")
		c.holdsAll(w)
	})
}

// leftovers are how much room the disk still has when it is full: which write
// meets the end depends on it.
func leftovers() []int64 {
	if os.Getenv("QS_E2E") == "short" {
		return []int64{0, 1000 * kib}
	}
	return []int64{0, 4 * kib, 40 * kib, 300 * kib, 1000 * kib}
}

// fullFollower is about a worker whose disk fills while it follows the log.
func fullFollower(t *testing.T, kind string) {
	c := newCast(t)
	d := newDisk(t, kind, 96)
	c.on(d, "w1")
	m, w := c.start("manager", "m1", "--snapshot-every", "0"), c.start("worker", "w1")
	c.mustWrite(m, mib)
	c.converged(m, "m1", "w1")
	for i, left := range leftovers() {
		t.Logf("%d KiB left", left/kib)
		from := logged(w)
		d.leave(left)
		c.mustWrite(m, 2*mib)
		line := c.says(w, from, "the disk is full", "no space left")
		t.Log(strings.TrimSpace(line))
		c.holds(w, "key-00000001", "key-00001000")
		c.serves(w)
		c.alive(w)

		if i%2 == 0 {
			w.Kill()
			c.verify(w)
		} else if err := w.Stop(); err != nil {
			t.Errorf("on a full disk: %v", err)
		}
		w = c.start("worker", "w1")
		c.eventually("it serves what it holds though the disk is full", func() error { return ready(t, w) })
		c.holds(w, "key-00000001", "key-00001000")
		d.clear()
		c.converged(m, "m1", "w1")
		c.alive(w)
	}
	c.holdsAll(w)
}

// fullWriter is about the writer's disk.
func fullWriter(t *testing.T, kind string) {
	c := newCast(t)
	d := newDisk(t, kind, 96)
	c.on(d, "m1")
	m, w := c.start("manager", "m1", "--snapshot-every", "0"), c.start("worker", "w1")
	c.mustWrite(m, mib)
	for _, left := range leftovers() {
		t.Logf("%d KiB left", left/kib)
		d.leave(left)
		err := c.write(m, 3*mib)
		if err == nil {
			t.Fatal("3 MiB were acknowledged without a disk to hold them")
		}
		t.Log(err)
		if !strings.Contains(err.Error(), "no space left") {
			t.Errorf("the error does not say why: %v", err)
		}
		var snap string
		if err := c.post(m, "/v1/snapshots", nil, &snap); err == nil {
			t.Fatal("a snapshot was minted without room for it")
		} else {
			t.Log(err)
		}
		c.holds(m, "key-00000001", "key-00001000")
		c.serves(m)
		c.alive(m)

		m.Kill()
		c.verify(m)
		m = c.start("manager", "m1")
		c.holdsAll(m)
		d.clear()
		c.eventually("it takes writes again", func() error { return c.write(m, kib) })
		c.alive(m)
		c.converged(m, "m1", "w1")
	}
	c.holdsAll(m)
	c.holdsAll(w)
	if err := c.mint(m); err != nil {
		t.Fatal(err)
	}
}

// serves checks that n hands out its log.
func (c *cast) serves(n *fleet.Node) {
	c.t.Helper()
	st, err := n.Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	if s := st[n.Name].State; s != "serving" && s != "catching-up" {
		c.t.Errorf("%s is %s", n.Name, s)
	}
}

func ready(t *testing.T, n *fleet.Node) error {
	return n.Call(t.Context(), http.MethodGet, "/readyz", nil, nil)
}
