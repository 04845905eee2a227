package peer

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestOpenNode(t *testing.T) {
	const bound = `,"dataset":"000102030405060708090a0b0c0d0e0f"}`
	for _, tt := range []struct {
		name   string
		file   string // node.json; empty: none
		o      Options
		writer bool
		want   []string // parts of the error
	}{
		{"first manager", "", Options{Name: "m", Role: gossip.Manager}, true, nil},
		{"joining manager", "", Options{Name: "m", Role: gossip.Manager, Join: []string{"x:1"}}, false, nil},
		{"joining manager with init", "", Options{Name: "m", Role: gossip.Manager, Join: []string{"x:1"}, Init: true}, true, nil},
		{"worker", "", Options{Name: "w", Role: gossip.Worker}, false, nil},
		{"writer again, joining", `{"format":1,"role":"manager","name":"m","writer":true` + bound,
			Options{Name: "m", Role: gossip.Manager, Join: []string{"x:1"}}, true, nil},
		{"writer again, with init", `{"format":1,"role":"manager","name":"m","writer":true` + bound,
			Options{Name: "m", Role: gossip.Manager, Init: true}, true, nil},
		{"follower again, alone", `{"format":1,"role":"manager","name":"m","writer":false` + bound,
			Options{Name: "m", Role: gossip.Manager}, false, nil},
		{"waiting manager becomes writer", `{"format":1,"role":"manager","name":"m","writer":false}`,
			Options{Name: "m", Role: gossip.Manager, Init: true}, true, nil},
		{"renamed", `{"format":1,"role":"worker","name":"old","writer":false}`, Options{Name: "w", Role: gossip.Worker}, false, nil},
		{"follower with init", `{"format":1,"role":"manager","name":"m","writer":false` + bound,
			Options{Name: "m", Role: gossip.Manager, Init: true}, false, []string{"--init", "000102030405060708090a0b0c0d0e0f"}},
		{"another role", `{"format":1,"role":"manager","name":"m","writer":true}`, Options{Name: "m", Role: gossip.Worker}, false,
			[]string{"belongs to a manager", "this is a worker", "start it as a manager"}},
		{"newer format", `{"format":2,"role":"?","more":{}}`, Options{Name: "m", Role: gossip.Manager}, false,
			[]string{"format 2", "up to 1", "newer version"}},
		{"no format", `{"role":"worker","name":"w"}`, Options{Name: "w", Role: gossip.Worker}, false, []string{"format 0"}},
		{"unknown field", `{"format":1,"role":"worker","nmae":"w"}`, Options{Name: "w", Role: gossip.Worker}, false, []string{"nmae"}},
		{"bad dataset", `{"format":1,"role":"worker","name":"w","dataset":"x"}`, Options{Name: "w", Role: gossip.Worker}, false, []string{"dataset id"}},
		{"cut short", `{"format":1,"ro`, Options{Name: "w", Role: gossip.Worker}, false, []string{"node.json"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, nodeName)
			if tt.file != "" {
				if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n, err := openNode(dir, &tt.o)
			if len(tt.want) > 0 {
				wantError(t, err, tt.want...)
				if text, _ := os.ReadFile(path); string(text) != tt.file {
					t.Errorf("a refused start changed node.json to %s", text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n.writer() != tt.writer {
				t.Errorf("writer is %v, want %v", n.writer(), tt.writer)
			}
			again, err := openNode(dir, &Options{Name: tt.o.Name, Role: tt.o.Role})
			if err != nil {
				t.Fatal(err)
			}
			if again.id != n.id || n.id.Name != tt.o.Name {
				t.Errorf("read back %+v, had %+v", again.id, n.id)
			}
		})
	}
}

// TestDamagedNode damages node.json at every byte: the copy says what it said. Of a worker
// both may be damaged.
func TestDamagedNode(t *testing.T) {
	flip := func(t *testing.T, path string, at int) {
		edit(t, path, func(b []byte) []byte { b[at%len(b)] ^= 1 << (at % 7); return b })
	}
	o := Options{Name: "m", Role: gossip.Manager, Init: true, Logger: slog.New(slog.DiscardHandler)}
	dir := t.TempDir()
	n, err := openNode(dir, &o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.bind(txlog.DatasetID{1}); err != nil {
		t.Fatal(err)
	}
	o.Init = false
	path := filepath.Join(dir, nodeName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		flip(t, path, at)
		again, err := openNode(dir, &o)
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		if !again.writer() || again.dataset() != n.dataset() || again.id.Name != "m" {
			t.Fatalf("byte %d: it is now %+v", at, again.id)
		}
		edit(t, path, func([]byte) []byte { return whole }) // where the case of a letter changed it was as good as before
	}
	for _, name := range []string{nodeName, copyName} {
		edit(t, filepath.Join(dir, name), func(b []byte) []byte { return make([]byte, len(b)) })
	}
	if _, err := openNode(dir, &o); err == nil {
		t.Error("a manager started that does not know whether it is the writer")
	}
	o.Role = gossip.Worker
	worker, err := openNode(dir, &o)
	if err != nil || worker.id.Role != gossip.Worker || worker.writer() {
		t.Errorf("a worker: %v", err)
	}
}

func TestNodeBind(t *testing.T) {
	dir := t.TempDir()
	n, err := openNode(dir, &Options{Name: "w", Role: gossip.Worker})
	if err != nil {
		t.Fatal(err)
	}
	a, b := txlog.DatasetID{1}, txlog.DatasetID{2}
	if err := n.bind(a); err != nil {
		t.Fatal(err)
	}
	if err := n.bind(a); err != nil {
		t.Fatalf("the same again: %v", err)
	}
	wantError(t, n.bind(b), a.String(), b.String(), dir)
	if n.dataset() != a {
		t.Errorf("bound to %s", n.dataset())
	}
}

func TestOpenNodeWithoutFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, logDir, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := openNode(dir, &Options{Name: "m", Role: gossip.Manager})
	wantError(t, err, dir, "log/", nodeName)
}
