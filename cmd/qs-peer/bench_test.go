package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// soon asks until ok is true.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// about returns the processes whose command line names dir.
func about(t *testing.T, dir string) (pids []string) {
	t.Helper()
	for _, file := range glob(t, "/proc/[0-9]*/cmdline") {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(dir)) {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}

// inNamespaces returns who is in one of the namespaces, or holds it open.
func inNamespaces(t *testing.T, names map[string]bool) (holders []string) {
	t.Helper()
	for _, link := range append(glob(t, "/proc/[0-9]*/ns/net"), glob(t, "/proc/[0-9]*/fd/*")...) {
		if to, err := os.Readlink(link); err == nil && names[to] {
			holders = append(holders, link)
		}
	}
	return holders
}

// However a bench ends, nothing of it is left; but for its directory when it is
// killed, which the next one removes.
func TestBenchLeavesNothing(t *testing.T) {
	if err := lab.Permitted(); err != nil {
		t.Skip(err)
	}
	bin, err := exec.LookPath("qs-peer")
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			var out bytes.Buffer
			cmd := exec.Command(bin, "bench", "swarm", "--workers", "3", "--size", "8MiB", "--rate", "2mbit", "--runs", "1", "--dir", dir)
			cmd.Stderr = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			scratch := filepath.Join(dir, "qs-peer-bench-*")
			soon(t, "all workers run", func() bool { return len(glob(t, scratch+"/*/w*/addrs.json")) == 3 })
			namespaces := map[string]bool{}
			for _, pid := range about(t, dir+"/qs-peer-bench-") {
				if ns, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil {
					namespaces[ns] = true
				}
			}
			if len(namespaces) != 4 {
				t.Fatalf("4 nodes are in the namespaces %v", namespaces)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if sig == syscall.SIGKILL {
				if len(glob(t, scratch)) == 0 {
					t.Error("it was killed before it had a directory")
				}
			} else {
				if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(out.String(), "qs-peer: interrupted\n") {
					t.Errorf("exit status %d:\n%s", code, out.String())
				}
				if left := glob(t, dir+"/*"); len(left) > 0 {
					t.Errorf("left are %q", left)
				}
			}
			soon(t, "its processes end", func() bool { return len(about(t, dir)) == 0 })
			soon(t, "its namespaces are gone", func() bool { return len(inNamespaces(t, namespaces)) == 0 })

			text, err := exec.Command(bin, "bench", "swarm", "--clean", "--dir", dir).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if removed := bytes.HasPrefix(text, []byte("removed "+dir)); removed != (sig == syscall.SIGKILL) {
				t.Errorf("--clean says %q", text)
			}
			if left := glob(t, dir+"/*"); len(left) > 0 {
				t.Errorf("left are %q", left)
			}
		})
	}
}

// Without root it says so, and what to do.
func TestBenchWithoutRoot(t *testing.T) {
	bin, err := exec.LookPath("qs-peer")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(bin, "bench", "swarm", "--size", "1MiB", "--runs", "1", "--dir", dir)
	if os.Geteuid() == 0 {
		// Nobody may look into the directory that our program is in, nor into this one's parent.
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd.Path = filepath.Join(dir, "qs-peer")
		if err := copyFile(cmd.Path, bin); err != nil {
			t.Fatal(err)
		}
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = "/"
	} else if lab.Permitted() == nil {
		t.Skip("this user may make networks without being root")
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(string(out), "need root") || !strings.Contains(string(out), "sudo") {
		t.Errorf("%v:\n%s", err, out)
	}
	if left := glob(t, dir+"/qs-peer-bench-*"); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

func copyFile(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// A worker that dies by itself ends the bench, with its name and last words.
func TestBenchTellsWhoDied(t *testing.T) {
	if err := lab.Permitted(); err != nil {
		t.Skip(err)
	}
	bin, err := exec.LookPath("qs-peer")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var out bytes.Buffer
	cmd := exec.Command(bin, "bench", "swarm", "--workers", "2", "--size", "8MiB", "--rate", "2mbit", "--runs", "1", "--dir", dir)
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var addrs []string
	soon(t, "w2 runs", func() bool {
		addrs = glob(t, dir+"/*/*/w2/addrs.json")
		if len(addrs) != 1 {
			return false
		}
		// It logs after it wrote its addresses.
		said, _ := os.ReadFile(filepath.Dir(addrs[0]) + ".log")
		return bytes.Contains(said, []byte("level=INFO"))
	})
	text, err := os.ReadFile(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	var node struct{ PID int }
	if err := json.Unmarshal(text, &node); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(node.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if last := lines[len(lines)-1]; cmd.ProcessState.ExitCode() != exitFailed || !strings.HasPrefix(last, "qs-peer: w2: ") || !strings.Contains(last, " ended ") ||
		!strings.Contains(out.String(), "level=INFO") {
		t.Errorf("exit status %d:\n%s", cmd.ProcessState.ExitCode(), out.String())
	}
	if left := glob(t, dir+"/*"); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}
