package peer

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/txlog"
)

// startError starts a node that must not start, and returns why.
func (n *testNode) startError() error {
	n.t.Helper()
	p, err := Start(context.Background(), n.o)
	if err == nil {
		n.p = p
		n.t.Fatalf("%s started", n.o.Name)
	}
	return err
}

func TestStartInUse(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	again := newNode(t, "m1", gossip.Manager)
	again.o.Data = m.o.Data
	wantError(t, again.startError(), m.o.Data, "in use by process ")
	m.put("a", "1") // the first one is not harmed
}

func TestStartPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for _, tt := range []struct {
		flag string
		set  func(*Options)
	}{
		{"--gossip-addr", func(o *Options) { o.GossipAddr = taken }},
		{"--swarm-addr", func(o *Options) { o.SwarmAddr = taken }},
		{"--peer-addr", func(o *Options) { o.PeerAddr = taken }},
		{"--http-addr", func(o *Options) { o.HTTPAddr = taken }},
		{"--resp-addr", func(o *Options) { o.RESPAddr = taken }},
	} {
		t.Run(tt.flag, func(t *testing.T) {
			m := newNode(t, "m1", gossip.Manager)
			o := m.o
			tt.set(&m.o)
			wantError(t, m.startError(), tt.flag, taken, "taken")
			// Everything was given back.
			m.o = o
			m.start()
			m.put("a", "1")
		})
	}
}

func TestStartUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false) // as a killed process leaves it
	stale.Close()
	m := newNode(t, "m1", gossip.Manager)
	m.o.RESPUnix = path
	m.start()

	other := newNode(t, "m2", gossip.Manager)
	other.o.RESPUnix = path
	wantError(t, other.startError(), "--resp-unix", path, "taken")

	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	other.o.RESPUnix = file
	wantError(t, other.startError(), "--resp-unix", file, "not a socket")
	if text, _ := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("the file holds %q", text)
	}
}

func TestStartRole(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	m.stop()
	m.o.Role = gossip.Worker
	wantError(t, m.startError(), m.o.Data, "start it as a manager")
}

// copyTree copies a stopped node's directory.
func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestStartDamaged starts a manager on what somebody did to its directory.
func TestStartDamaged(t *testing.T) {
	sound := newNode(t, "m1", gossip.Manager)
	sound.start()
	sound.putMany("k", 1000)
	sound.mint()
	sound.stop()
	if text, err := os.ReadFile(filepath.Join(sound.o.Data, lockName)); err != nil || len(text) > 0 {
		t.Errorf("after a stop in order the lock holds %q, %v", text, err)
	}
	other := newNode(t, "m1", gossip.Manager)
	other.start()
	other.put("a", "1")
	other.stop()

	for _, tt := range []struct {
		name string
		harm func(t *testing.T, dir string)
		want []string // parts of the error
	}{
		{"newer format", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, nodeName), func(b []byte) []byte {
				return []byte(strings.Replace(string(b), `"format": 1`, `"format": 7, "more": 1`, 1))
			})
		}, []string{nodeName, "format 7", "newer version"}},
		{"no log", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, logDir)) },
			[]string{"store is at entry", "log ends at entry 0", "qs-peer restore"}},
		{"no log and no store", func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, logDir))
			remove(t, filepath.Join(dir, storeDir))
		}, []string{"the writer of dataset", "log/ in it is empty"}},
		{"no node.json", func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, nodeName))
			remove(t, filepath.Join(dir, copyName))
		},
			[]string{"no node.json"}},
		{"another log", func(t *testing.T, dir string) { replace(t, dir, other.o.Data, logDir) },
			[]string{"belongs to dataset", "log/ in it holds dataset"}},
		{"another store", func(t *testing.T, dir string) { replace(t, dir, other.o.Data, storeDir) },
			[]string{"belongs to dataset", "store/ in it holds dataset"}},
		{"a byte of the log changed", func(t *testing.T, dir string) {
			edit(t, oneFile(t, filepath.Join(dir, logDir), ".log"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, []string{"open log", "damaged at offset", "qs-peer restore"}},
		{"the store's file cut short", func(t *testing.T, dir string) {
			edit(t, oneFile(t, filepath.Join(dir, storeDir), "data.mdb"), func(b []byte) []byte { return b[:len(b)/2] })
		}, []string{"open store", "qs-peer restore"}},
		{"a page of the store changed, and a crash", func(t *testing.T, dir string) {
			edit(t, oneFile(t, filepath.Join(dir, storeDir), "data.mdb"), func(b []byte) []byte {
				clear(b[len(b)-8192:])
				return b
			})
			remove(t, oneFile(t, filepath.Join(dir, storeDir), "CLEAN"))
		}, []string{"data.mdb", "damaged", "qs-peer restore"}},
		{"a file for a directory", func(t *testing.T, dir string) {
			remove(t, dir)
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"make data directory"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newNode(t, "m1", gossip.Manager)
			m.o.Data = copyTree(t, sound.o.Data)
			tt.harm(t, m.o.Data)
			before := listing(t, m.o.Data)
			err := m.startError()
			wantError(t, err, tt.want...)
			wantError(t, err, m.o.Data)
			after := listing(t, m.o.Data)
			for line := range strings.Lines(before) {
				if !strings.Contains(after, line) {
					t.Errorf("the refused start changed %s", line)
				}
			}
		})
	}
}

// TestStartReadOnly needs a user that permissions apply to.
func TestStartReadOnly(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("permissions do not apply to root")
	}
	m := newNode(t, "m1", gossip.Manager)
	if err := os.Chmod(m.o.Data, 0o500); err != nil {
		t.Fatal(err)
	}
	wantError(t, m.startError(), m.o.Data, "permission denied")
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, dir, from, sub string) {
	t.Helper()
	remove(t, filepath.Join(dir, sub))
	if err := os.CopyFS(filepath.Join(dir, sub), os.DirFS(filepath.Join(from, sub))); err != nil {
		t.Fatal(err)
	}
}

// oneFile finds the only file below dir whose name ends so.
func oneFile(t *testing.T, dir, suffix string) (path string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(p, suffix) {
			if path != "" {
				t.Fatalf("both %s and %s", path, p)
			}
			path = p
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("no %s below %s: %v", suffix, dir, err)
	}
	return path
}

// listing names what a directory holds, but for locks.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == lockName || d.Name() == "lock.mdb" || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(p)
		b.WriteString(strings.TrimPrefix(p, dir) + " " + txlog.Hash(sha256.Sum256(text)).String() + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
