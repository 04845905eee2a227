package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// TestReadOnly has the kernel find an error in a node's file system, whereupon it
// takes no more writes, as most are set up.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"manager", "worker"} {
		t.Run(role, func(t *testing.T) {
			c := newCast(t)
			d := newDisk(t, "ext4", 64)
			c.on(d, role)
			m := c.start("manager", "m1", "--snapshot-every", "0")
			if role == "manager" {
				m.Kill()
				c.Fleet = fleet.New(os.Getenv("QS_PEER"), c.dir)
				m = c.start("manager", role, "--snapshot-every", "0")
			}
			n := m
			if role == "worker" {
				n = c.start("worker", role)
			}
			c.mustWrite(m, mib)
			c.converged(m, n.Name)

			d.fail()
			if err := c.write(m, 100*kib); (err == nil) != (role == "worker") {
				t.Fatalf("a write on the %s's read-only disk: %v", role, err)
			} else if err != nil {
				t.Log(err)
			}
			t.Log(strings.TrimSpace(c.says(n, 0, "read-only")))
			c.holdsAll(m)
			c.holds(n, "key-00000001", "key-00001000")
			c.alive(n)

			n.Kill()
			d.again()
			c.verify(n)
			n = c.start(n.Role, n.Name)
			c.converged(n, n.Name)
			c.holdsAll(n)
			c.mustWrite(c.writer(m, n), 100*kib)
		})
	}
}

func (c *cast) writer(m, n *fleet.Node) *fleet.Node {
	if n.Role == "manager" {
		return n
	}
	return m
}

// TestFailingDisk has system calls of a node fail at random, in turn on a
// writer and on a worker.
func TestFailingDisk(t *testing.T) {
	t.Parallel()
	c := newCast(t)
	strace(t)
	m, w := c.start("manager", "m1", "--snapshot-every", "0"), c.start("worker", "w1")
	c.mustWrite(m, mib)
	c.converged(m, "m1", "w1")
	for _, n := range []*fleet.Node{m, w} {
		for _, fault := range []string{
			"fsync,fdatasync:error=EIO",
			"fsync,fdatasync:error=EIO:when=2+2",
			"pwrite64:error=EIO",
			"pwrite64:error=EIO:when=3+3",
			"fdatasync:error=ENOSPC",
			"fsync,fdatasync,pwrite64,pwritev,ftruncate,openat:error=EROFS",
		} {
			t.Run(n.Name+" "+fault, func(t *testing.T) {
				c := *c
				c.t = t
				from := logged(n)
				stop := inject(t, n, fault)
				refused := 0
				for range 8 {
					if err := c.write(m, 20*kib); err != nil {
						refused++
						t.Log(err)
					}
					c.holds(n, "key-00000001", "key-00001000")
				}
				t.Log(strings.TrimSpace(c.says(n, from, "level=ERROR")))
				c.alive(n)
				t.Logf("%d of 8 writes were refused", refused)
				stop()
				c.eventually("it takes writes again", func() error { return c.write(m, kib) })
				c.converged(m, "m1", "w1")
				c.alive(m)
				c.alive(w)
			})
		}
	}
	for _, n := range []*fleet.Node{m, w} {
		c.holdsAll(n)
		n.Kill()
		c.verify(n)
	}
}

// TestSlowDisk has a node's disk take seconds for each fsync.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	c := newCast(t)
	strace(t)
	m, w := c.start("manager", "m1", "--snapshot-every", "0"), c.start("worker", "w1")
	c.mustWrite(m, mib)
	c.converged(m, "m1", "w1")
	for _, n := range []*fleet.Node{w, m} {
		t.Run(n.Name, func(t *testing.T) {
			c := *c
			c.t = t
			stop := inject(t, n, "fsync,fdatasync:delay_enter=2000000")
			wrote := make(chan error, 1)
			go func() { wrote <- c.write(m, 20*kib) }()
			slowest, reads := time.Duration(0), 0
			for done, since := false, time.Now(); !done || time.Since(since) < 3*time.Second; reads++ {
				began := time.Now()
				c.holds(n, "key-00000001")
				slowest = max(slowest, time.Since(began))
				select {
				case err := <-wrote:
					if done = true; err != nil {
						t.Error(err)
					}
				case <-time.After(20 * time.Millisecond):
				}
			}
			t.Logf("the slowest of %d reads took %v", reads, slowest)
			if slowest > 2*time.Second {
				t.Errorf("a read waited %v for the disk", slowest)
			}
			st, err := m.Status(t.Context())
			if err != nil || st["w1"].State == "failed" || st["m1"].State == "failed" {
				t.Errorf("the fleet is %+v, %v", st, err)
			}
			c.converged(m, "m1", "w1") // at a disk's pace
			stop()
			c.alive(n)
		})
	}
}

// TestNoDescriptors takes the file descriptors from a node, but for those it has.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	c := newCast(t)
	m, w := c.start("manager", "m1", "--snapshot-every", "0"), c.start("worker", "w1")
	c.mustWrite(m, mib)
	c.converged(m, "m1", "w1")
	for _, n := range []*fleet.Node{m, w} {
		t.Run(n.Name, func(t *testing.T) {
			c := *c
			c.t = t
			get := func(client *http.Client) error {
				resp, err := client.Get("http://" + n.Addrs.HTTP + "/v1/kv/key-00000001")
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				value, err := io.ReadAll(resp.Body)
				if err == nil && (resp.StatusCode != http.StatusOK || string(value) != c.written["key-00000001"]) {
					err = fmt.Errorf("%s: %.20q…", resp.Status, value)
				}
				return err
			}
			there := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: patience}
			defer there.CloseIdleConnections()
			fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
			if err := get(there); err != nil {
				t.Fatal(err)
			}

			restore := noDescriptors(t, n)
			c.limit = 2 * time.Second // a connection that nobody can accept waits for good
			for range 10 {
				if err := get(fresh); err == nil {
					t.Error("a node without descriptors accepted a connection")
				}
				if err := c.write(m, 10*kib); err != nil {
					t.Log(err)
				}
				if err := get(there); err != nil {
					t.Fatalf("over a connection that is there: %v", err)
				}
			}
			if err := c.mint(n); err != nil {
				t.Log(err)
			}
			c.alive(n)

			restore()
			c.limit = patience
			c.eventually("others can connect again", func() error { return get(fresh) })
			c.eventually("it takes writes again", func() error { return c.write(m, kib) })
			c.converged(m, "m1", "w1")
			c.holdsAll(n)
			c.alive(n)
			if err := c.mint(m); err != nil {
				t.Error(err)
			}
		})
	}
}

// noDescriptors lets a process open no more.
func noDescriptors(t *testing.T, n *fleet.Node) (restore func()) {
	t.Helper()
	var before unix.Rlimit
	set := func(limit, was *unix.Rlimit) {
		if err := unix.Prlimit(n.PID(), unix.RLIMIT_NOFILE, limit, was); err != nil {
			t.Fatal(err)
		}
	}
	set(nil, &before)
	set(&unix.Rlimit{Cur: 0, Max: before.Max}, nil) // what is open stays so
	return func() { set(&before, nil) }
}

func strace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
}

// inject has system calls of a node fail, in strace's words, until stop.
func inject(t *testing.T, n *fleet.Node, fault string) (stop func()) {
	t.Helper()
	return injectInto(t, n.PID(), fault)
}

func injectInto(t *testing.T, pid int, fault string) (stop func()) {
	t.Helper()
	calls, _, _ := strings.Cut(fault, ":")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "strace", "-f", "-qq", "-p", fmt.Sprint(pid), "-o", filepath.Join(t.TempDir(), "trace"),
		"-e", "trace="+calls, "-e", "signal=none", "-e", "inject="+fault)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it lets go of the process
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cancel()
			_ = cmd.Wait() // ended by a signal
		}
	}
	t.Cleanup(stop)
	err := fleet.Until(t.Context(), patience, func() error {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if errors.Is(err, fs.ErrNotExist) && !ended {
			ended = true
			if cmd.Wait() == nil {
				return nil // it was traced, and met the fault and ended of it before we looked
			}
		}
		if err != nil {
			return fleet.Stop(err)
		}
		if strings.Contains(string(status), "TracerPid:\t0\n") {
			return errors.New("not traced yet")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("strace: %v: %s", err, said.String())
	}
	return stop
}
