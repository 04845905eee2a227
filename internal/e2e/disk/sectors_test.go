package disk

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// TestUnreadableDisk has a part of a worker's disk return EIO for whatever is read there or
// written, as bad sectors do. LMDB reads its file through a map, where that is SIGBUS.
// Nothing wrong is served and the process lives; once the disk is well again so is the node.
func TestUnreadableDisk(t *testing.T) {
	t.Parallel()
	c := newCast(t)
	m := c.start("manager", "m1", "--snapshot-every", "0")
	c.mustWrite(m, 5*mib)
	c.snapshot(m)
	d := newDisk(t, "ext4", 64, "-O", "^has_journal") // which would be in the part that goes
	c.on(d, "w1")
	w := c.start("worker", "w1")
	c.converged(m, "m1", "w1")
	c.mustWrite(m, mib)
	c.converged(m, "m1", "w1")

	// What a process has mapped stays in memory: another one, with nothing there.
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	forget(t, w.Data)
	w = c.start("worker", "w1")
	c.converged(m, "m1", "w1")
	from := logged(w)
	d.shrink(middle(t, environment(t, w)))

	served, refused := 0, 0
reading:
	for key, want := range c.written {
		var value string
		err := w.Call(t.Context(), http.MethodGet, "/v1/kv/"+key, nil, &value)
		var status *fleet.StatusError
		switch {
		case err == nil && value == want:
			served++
		case errors.As(err, &status) && status.Code == http.StatusServiceUnavailable:
			if refused++; refused == 500 {
				break reading
			}
		default:
			t.Fatalf("%s is %.20q, %v", key, value, err)
		}
	}
	t.Logf("%d reads were served, %d refused", served, refused)
	if refused == 0 {
		t.Error("no read met the part of the disk that can not be read")
	}
	t.Log(strings.TrimSpace(c.says(w, from, "damage found", "part=store")))
	c.alive(w)
	c.mustWrite(m, 100*kib)

	d.shrink(0)
	c.converged(m, "m1", "w1")
	c.holdsAll(w)
	c.alive(w)
	w.Kill()
	c.verify(w)
}

// shrink has a disk end after so many bytes, 0 for where it did, under the file system
// that is on it: what is behind can be neither read nor written.
func (d *disk) shrink(size int64) {
	d.t.Helper()
	f, err := os.OpenFile(d.source(), os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		d.t.Fatal(err)
	}
	info.Sizelimit = uint64(size)
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		d.t.Fatalf("set the size of %s: %v", d.source(), err)
	}
}

// forget writes all files of a directory, and has the kernel keep nothing of them in memory.
func forget(t *testing.T, dir string) {
	t.Helper()
	unix.Sync()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// extent is a line of filefrag: where a file's blocks, of 4096 bytes, are on the disk.
var extent = regexp.MustCompile(`(?m)^ *\d+: +\d+\.\. *\d+: +(\d+)\.\. *(\d+):`)

// middle returns the place on the disk before which half of a file's blocks are.
func middle(t *testing.T, file string) int64 {
	t.Helper()
	out, err := exec.Command("filefrag", "-b4096", "-v", file).CombinedOutput()
	if err != nil {
		t.Fatalf("filefrag: %v: %s", err, out)
	}
	var blocks []bool
	sum := 0
	for _, m := range extent.FindAllStringSubmatch(string(out), -1) {
		first, _ := strconv.Atoi(m[1])
		last, _ := strconv.Atoi(m[2])
		for len(blocks) <= last {
			blocks = append(blocks, false)
		}
		for b := first; b <= last; b++ {
			blocks[b] = true
			sum++
		}
	}
	n := 0
	for b, used := range blocks {
		if used {
			n++
		}
		if n > sum/2 {
			return int64(b) * 4096
		}
	}
	t.Fatalf("no extents:\n%s", out)
	return 0
}
