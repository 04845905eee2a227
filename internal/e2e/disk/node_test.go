package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// patience is how long anything may take that has to happen.
const patience = time.Minute

// cast is a fleet whose every failure ends the test, and what was written to it.
type cast struct {
	*fleet.Fleet
	t       *testing.T
	dir     string
	written map[string]string // acknowledged
	wrote   int
	limit   time.Duration // of a write, and of a mint
}

func newCast(t *testing.T) *cast {
	needRoot(t)
	dir := t.TempDir()
	c := &cast{fleet.New(os.Getenv("QS_PEER"), dir), t, dir, map[string]string{}, 0, patience}
	t.Cleanup(func() {
		c.Close()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, path := range logs {
				text, _ := os.ReadFile(path)
				t.Logf("%s:\n%s", filepath.Base(path), last(string(text), 40))
			}
		}
	})
	return c
}

func last(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// on places a node that is not started yet on a disk.
func (c *cast) on(d *disk, name string) {
	c.t.Helper()
	if err := os.Mkdir(d.data(), 0o750); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Symlink(d.data(), filepath.Join(c.dir, name)); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { // before the disk is unmounted
		if n := c.Node(name); n != nil {
			n.Kill()
		}
	})
}

func (c *cast) start(role, name string, args ...string) *fleet.Node {
	c.t.Helper()
	n, err := c.Start(c.t.Context(), role, name, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// write writes pairs of so many bytes of values in all, in a few transactions,
// and returns the first error. What was acknowledged is remembered.
func (c *cast) write(to *fleet.Node, size int) error {
	const valueSize, most = 1000, 500
	for size > 0 {
		var ops []map[string]string
		batch := map[string]string{}
		for ; size > 0 && len(ops) < most; size -= valueSize {
			c.wrote++
			k, v := fmt.Sprintf("key-%08d", c.wrote), strings.Repeat(fmt.Sprintf("%08d.", c.wrote), valueSize/9)
			ops, batch[k] = append(ops, map[string]string{"op": "put", "key": k, "value": v}), v
		}
		if err := c.post(to, "/v1/txn", map[string]any{"ops": ops}, nil); err != nil {
			return err
		}
		for k, v := range batch {
			c.written[k] = v
		}
	}
	return nil
}

// mint has a node publish a snapshot.
func (c *cast) mint(n *fleet.Node) error { return c.post(n, "/v1/snapshots", nil, nil) }

func (c *cast) post(to *fleet.Node, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), c.limit)
	defer cancel()
	return to.Call(ctx, http.MethodPost, path, body, answer)
}

func (c *cast) mustWrite(to *fleet.Node, size int) {
	c.t.Helper()
	if err := c.write(to, size); err != nil {
		c.t.Fatal(err)
	}
}

// holds checks that n answers with what was acknowledged, of some keys.
func (c *cast) holds(n *fleet.Node, keys ...string) {
	c.t.Helper()
	for _, key := range keys {
		var value string
		if err := n.Call(c.t.Context(), http.MethodGet, "/v1/kv/"+key, nil, &value); err != nil {
			c.t.Fatalf("%s does not serve what it holds: %v", n.Name, err)
		}
		if value != c.written[key] {
			c.t.Fatalf("%s: %s is %.20q…, and %.20q… was acknowledged", n.Name, key, value, c.written[key])
		}
	}
}

// holdsAll checks every pair.
func (c *cast) holdsAll(n *fleet.Node) {
	c.t.Helper()
	for key := range c.written {
		c.holds(n, key)
	}
}

func (c *cast) converged(from *fleet.Node, names ...string) {
	c.t.Helper()
	if _, err := from.Converged(c.t.Context(), patience, names, nil); err != nil {
		c.t.Fatalf("the fleet did not converge: %v", err)
	}
}

// eventually waits until ask returns nil.
func (c *cast) eventually(what string, ask func() error) {
	c.t.Helper()
	if err := fleet.Until(c.t.Context(), patience, ask); err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// fetched waits until a worker has a share of what it fetches.
func (c *cast) fetched(w *fleet.Node, share float64) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%.0f%% are there", 100*share), func() error {
		st, err := w.Status(c.t.Context())
		if err != nil {
			return err
		}
		if p := st[w.Name].Progress; p < share {
			return fmt.Errorf("%.2f", p)
		}
		return nil
	})
}

// has waits until a node has one file of a pattern, of so many bytes at least.
func (c *cast) has(n *fleet.Node, pattern string, size int64) {
	c.t.Helper()
	c.eventually(n.Name+" has "+pattern, func() error {
		made, err := filepath.Glob(filepath.Join(n.Data, filepath.FromSlash(pattern)))
		if err != nil {
			return fleet.Stop(err)
		}
		if len(made) == 1 {
			if info, err := os.Stat(made[0]); err == nil && info.Size() >= size {
				return nil
			}
		}
		return fmt.Errorf("there are %q", made)
	})
}

// says waits until a node's log, from byte from on, has a line with all of the words.
func (c *cast) says(n *fleet.Node, from int64, words ...string) string {
	c.t.Helper()
	var found string
	c.eventually(fmt.Sprintf("%s logs %q", n.Name, words), func() error {
		text, err := os.ReadFile(n.Log)
		if err != nil {
			return err
		}
	lines:
		for line := range strings.Lines(string(text[from:])) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			found = line
			return nil
		}
		return errors.New("not yet")
	})
	return found
}

func logged(n *fleet.Node) int64 {
	info, err := os.Stat(n.Log)
	if err != nil {
		return 0
	}
	return info.Size()
}

// alive checks that n's process was not replaced and runs.
func (c *cast) alive(n *fleet.Node) {
	c.t.Helper()
	select {
	case <-n.Exited():
		c.t.Fatalf("%s ended:\n%s", n.Name, n.Tail(20))
	default:
	}
}

// verify checks what a killed node left on its disk, offline, on a copy: to look
// at it must not change what the next process finds.
func (c *cast) verify(n *fleet.Node) {
	c.t.Helper()
	dir := filepath.Join(c.t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(n.Data)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.t.Fatal(err)
	}
	out, err := c.command("verify", "--data", dir)
	if err != nil {
		c.t.Fatalf("what %s has on its disk is not sound: %v\n%s", n.Name, err, out)
	}
}

func (c *cast) command(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv("QS_PEER"), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}
