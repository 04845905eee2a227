package disk

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// diskFault is a way in which a disk fails in the middle of something.
type diskFault struct {
	name string
	says []string // what whoever meets it says of it
	// strike makes the disk of a running process fail until over.
	strike func(t *testing.T, d *disk, pid int) (over func())
	// restarts is whether over needs the process gone.
	restarts bool
}

var diskFaults = []diskFault{
	{
		name: "EIO", says: []string{"input/output error"},
		strike: func(t *testing.T, _ *disk, pid int) func() {
			return injectInto(t, pid, "fsync,fdatasync,pwrite64:error=EIO")
		},
	},
	{
		name: "read-only", says: []string{"read-only file system"}, restarts: true,
		strike: func(_ *testing.T, d *disk, _ int) func() {
			d.fail()
			return d.again
		},
	},
}

// TestFaultsAtStages has a disk fail, or turn read-only, in the middle of a bootstrap, a
// mint, a repair and a restore. Nothing half-made stands under a final name, no process
// ends, but for a restore that says why, and all is well when the disk is.
func TestFaultsAtStages(t *testing.T) {
	t.Parallel()
	strace(t)
	for stage, run := range map[string]func(*testing.T, diskFault){
		"bootstrap": faultAtBootstrap, "mint": faultAtMint, "repair": faultAtRepair, "restore": faultAtRestore,
	} {
		for _, fault := range diskFaults {
			t.Run(stage+"/"+fault.name, func(t *testing.T) {
				t.Parallel()
				run(t, fault)
			})
		}
	}
}

// outlive ends a fault under a node, and sees to it that the node runs. What it left behind
// if it had to be killed was sound then, if it ought to have been.
func (c *cast) outlive(fault diskFault, over func(), n *fleet.Node, sound bool) *fleet.Node {
	c.t.Helper()
	c.alive(n)
	if fault.restarts {
		n.Kill()
	}
	over()
	if fault.restarts {
		if sound {
			c.verify(n)
		}
		n = c.start(n.Role, n.Name)
	}
	return n
}

func faultAtBootstrap(t *testing.T, fault diskFault) {
	c := newCast(t)
	m := c.start("manager", "m1", "--snapshot-every", "0")
	c.mustWrite(m, 3*mib)
	c.snapshot(m)
	d := newDisk(t, "ext4", 64)
	c.on(d, "w1")
	w := c.start("worker", "w1", "--download-rate", "1MB/s")
	c.fetched(w, 0.25)
	from := logged(w)
	over := fault.strike(t, d, w.PID())
	t.Log(strings.TrimSpace(c.says(w, from, fault.says...)))
	if err := ready(t, w); err == nil {
		t.Error("a worker that holds nothing says that it is ready")
	}
	w = c.outlive(fault, over, w, true)
	c.converged(m, "m1", "w1")
	c.holdsAll(w)
	c.alive(w)
}

func faultAtMint(t *testing.T, fault diskFault) {
	c := newCast(t)
	d := newDisk(t, "ext4", 64)
	c.on(d, "m1")
	m := c.start("manager", "m1", "--snapshot-every", "0", "--mint-rate", "1MB/s")
	c.mustWrite(m, 3*mib)
	minted := make(chan error, 1)
	go func() { minted <- c.mint(m) }()
	c.has(m, "snapshots/*.mint", mib)
	over := fault.strike(t, d, m.PID())
	err := <-minted
	if err == nil || !strings.Contains(err.Error(), fault.says[0]) {
		t.Fatalf("the mint: %v", err)
	}
	t.Log(err)
	if made, _ := filepath.Glob(filepath.Join(m.Data, "snapshots", "*.mdb")); len(made) > 0 {
		t.Errorf("half-made under a final name: %q", made)
	}
	c.holdsAll(m)
	m = c.outlive(fault, over, m, true)
	c.eventually("it mints again", func() error { return c.mint(m) })
	c.eventually("it takes writes again", func() error { return c.write(m, kib) })
	c.holdsAll(m)
	m.Kill()
	c.verify(m)
}

// faultAtRepair is about a worker whose store was cut short while it was stopped.
func faultAtRepair(t *testing.T, fault diskFault) {
	c := newCast(t)
	m := c.start("manager", "m1", "--snapshot-every", "0")
	c.mustWrite(m, 4*mib)
	c.snapshot(m)
	d := newDisk(t, "ext4", 64)
	c.on(d, "w1")
	w := c.start("worker", "w1")
	c.converged(m, "m1", "w1")
	c.mustWrite(m, 100*kib)
	c.converged(m, "m1", "w1")
	w.Kill()
	halve(t, environment(t, w))
	from := logged(w)
	w, err := c.Launch(c.Home("w1"), "worker", "w1")
	if err != nil {
		t.Fatal(err)
	}
	stop := injectInto(t, w.PID(), "fsync,fdatasync:delay_enter=300000") // that it is seen at it
	c.eventually("it is in quarantine", func() error { _, err := os.Stat(filepath.Join(w.Data, "quarantine.json")); return err })
	stop()
	over := fault.strike(t, d, w.PID())
	if err := c.Listening(t.Context(), w); err != nil {
		t.Log(err) // on a read-only disk it may not
	} else {
		for _, key := range []string{"key-00000001", "key-00004000"} {
			var value string
			if err := w.Call(t.Context(), http.MethodGet, "/v1/kv/"+key, nil, &value); err == nil && value != c.written[key] {
				t.Errorf("%s is %.20q", key, value)
			}
		}
	}
	t.Log(strings.TrimSpace(c.says(w, from, fault.says...)))
	select {
	case <-w.Exited():
		// It said why, and ended before it served anything.
		over()
		w = c.start("worker", "w1")
	default:
		w = c.outlive(fault, over, w, false)
	}
	c.converged(m, "m1", "w1")
	c.holdsAll(w)
	c.alive(w)
}

// faultAtRestore is about a writer whose store was cut short, and qs-peer restore.
func faultAtRestore(t *testing.T, fault diskFault) {
	c := newCast(t)
	d := newDisk(t, "ext4", 96)
	c.on(d, "m1")
	m, w := c.start("manager", "m1", "--snapshot-every", "0"), c.start("manager", "m2", "--snapshot-every", "0")
	c.mustWrite(m, 3*mib)
	c.snapshot(m)
	c.converged(m, "m1", "m2")
	c.has(w, "snapshots/*.mdb", 0)
	m.Kill()
	halve(t, environment(t, m))
	args, err := c.Command(m)
	if err != nil {
		t.Fatal(err)
	}
	args[1] = "restore"
	args = append(args, "--from", w.Addrs.HTTP)

	out := &strings.Builder{}
	cmd := exec.Command(args[0], append(args[1:], "--download-rate", "1MB/s")...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	c.has(m, "restoring/snapshots/*.part", 0)
	over := fault.strike(t, d, cmd.Process.Pid)
	waits := false
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(out.String(), fault.says[0]) {
			t.Errorf("the restore: %v: %s", err, out)
		}
		t.Log(last(out.String(), 1))
	case <-time.After(5 * time.Second): // it waits for the disk, as a node does
		if waits = true; fault.restarts {
			_ = cmd.Process.Kill()
			<-ended
			waits = false
		}
	}
	if kept, _ := filepath.Glob(filepath.Join(m.Data, "damaged-*")); len(kept) > 0 {
		t.Errorf("what is damaged was set aside before the other was there: %q", kept)
	}
	over()
	if waits {
		select {
		case err := <-ended:
			t.Logf("it waited, and ended: %v", err)
			if waits = err == nil; !waits {
				t.Log(out)
			}
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
			t.Fatalf("the restore hangs: %s", out)
		}
	}
	if !waits {
		if out, err := c.command(args[1:]...); err != nil {
			t.Fatalf("again: %v: %s", err, out)
		}
	}
	m = c.start("manager", "m1")
	c.converged(m, "m1", "m2")
	c.holdsAll(m)
	c.mustWrite(m, 100*kib)
}

func (c *cast) snapshot(m *fleet.Node) {
	c.t.Helper()
	if err := c.mint(m); err != nil {
		c.t.Fatal(err)
	}
}

// environment returns the file of a node's store.
func environment(t *testing.T, n *fleet.Node) string {
	t.Helper()
	current, err := os.ReadFile(filepath.Join(n.Data, "store", "CURRENT"))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(n.Data, "store", strings.TrimSpace(string(current)), "data.mdb")
}

// halve cuts a file short.
func halve(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
}
