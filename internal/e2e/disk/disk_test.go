package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a file system of its own.
type disk struct {
	t     *testing.T
	mount string
	image string // of ext4
}

// kinds returns kinds of file systems. They differ in when a write finds that there
// is no room.
func kinds() []string {
	if os.Getenv("QS_E2E") == "short" {
		return []string{"ext4"}
	}
	return []string{"ext4", "tmpfs"}
}

// newDisk mounts an empty file system of so many MiB, made with options of mkfs.
func newDisk(t *testing.T, kind string, mib int, options ...string) *disk {
	t.Helper()
	d := &disk{t: t, mount: t.TempDir()}
	switch kind {
	case "tmpfs":
		if err := unix.Mount("tmpfs", d.mount, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
			t.Fatalf("mount tmpfs: %v", err)
		}
	case "ext4":
		d.image = filepath.Join(t.TempDir(), "image")
		command(t, "truncate", "-s", fmt.Sprintf("%dM", mib), d.image)
		command(t, "mkfs.ext4", append(options, "-q", "-m", "0", "-e", "remount-ro", d.image)...)
		command(t, "mount", "-o", "loop", d.image, d.mount)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.mount, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// data is where a node may have its data directory.
func (d *disk) data() string { return filepath.Join(d.mount, "data") }

func (d *disk) room() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.mount, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// leave fills the disk up but for about so many bytes, or makes so much room.
func (d *disk) leave(bytes int64) {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.mount, "ballast"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	size := info.Size() + d.room() - bytes
	if size < info.Size() {
		if err := f.Truncate(max(0, size)); err != nil {
			d.t.Fatal(err)
		}
		return
	}
	// Zeros rather than fallocate, which ext4 gives back to nobody but itself.
	zeros := make([]byte, 64<<10)
	for at := info.Size(); at < size; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		at += int64(n)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		d.t.Fatal(err)
	}
}

// clear gives all the room back.
func (d *disk) clear() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.mount, "ballast")); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.t.Fatal(err)
	}
}

// fail has ext4 find an error, and turn read-only.
func (d *disk) fail() {
	d.t.Helper()
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(d.source()), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("a fault for the test"), 0); err != nil {
		d.t.Fatal(err)
	}
}

// source returns the device that is mounted.
func (d *disk) source() string {
	d.t.Helper()
	out, err := exec.Command("findmnt", "-n", "-o", "SOURCE", d.mount).Output()
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// again mounts a file system that failed again, repaired.
func (d *disk) again() {
	d.t.Helper()
	if err := unix.Unmount(d.mount, 0); err != nil {
		d.t.Fatal(err)
	}
	if out, err := exec.Command("fsck.ext4", "-fy", d.image).CombinedOutput(); err != nil {
		d.t.Logf("fsck: %v: %s", err, out) // 1: it mended something
	}
	command(d.t, "mount", "-o", "loop", d.image, d.mount)
}
