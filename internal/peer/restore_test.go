package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// TestRestoreEndsAnywhere ends a restore after each of its steps and runs it again:
// before all is there the writer is refused as before and nothing of it has changed, and
// what was gathered is a follower's; from then on it starts no more until the restore is
// done. The last one says what all did together.
func TestRestoreEndsAnywhere(t *testing.T) {
	ca := trusttest.New(t)
	m := newNode(t, "m1", gossip.Manager).secure(ca)
	m.start()
	for range 20 {
		m.put("key", strings.Repeat("v", 700))
	}
	m.mint()
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(m.put("known", "to all"))
	w.stop()
	for range 9 {
		m.put("key", strings.Repeat("w", 700))
	}
	last := m.put("last", "of all")
	m.stop()
	w.o.Join = nil
	w.start()
	edit(t, oneFile(t, filepath.Join(m.o.Data, logDir), ".log"), func(b []byte) []byte { b[len(b)/3] ^= 1; return b })
	before := snapshotOf(t, m.o.Data)

	m.o.Join = []string{w.p.Addrs().Gossip}
	ended := map[string]bool{}
	errEnded := errors.New("ended here")
	var steps []string
	o := RestoreOptions{Options: m.o, From: "w1", reached: func(step string) error {
		if ended[step] {
			return nil
		}
		ended[step] = true
		steps = append(steps, step)
		return errEnded
	}}
	r, err := Restore(t.Context(), o)
	for ; errors.Is(err, errEnded); r, err = Restore(t.Context(), o) {
		step := steps[len(steps)-1]
		if ended["ready"] {
			wantError(t, m.startError(), "a restore was interrupted", "qs-peer restore again")
			continue
		}
		if err := m.startError(); err == nil || strings.Contains(err.Error(), "interrupted") {
			t.Fatalf("after %q it starts, or is refused otherwise than before: %v", step, err)
		}
		if now := snapshotOf(t, m.o.Data); !slices.Equal(now, before) {
			t.Fatalf("after %q the directory holds %q instead of %q", step, now, before)
		}
		var gathered node
		if err := gathered.read(filepath.Join(m.o.Data, restoringDir, nodeName)); err != nil || gathered.id.Writer {
			t.Fatalf("after %q what was gathered is the writer's already: %+v, %v", step, gathered.id, err)
		}
	}
	if err != nil || r.Head.Seq != last || r.Salvaged != 10 || r.Lost != 0 || r.Aside == "" {
		t.Fatalf("restored %+v, %v", r, err)
	}
	for _, step := range []string{"begun", "followed", "salvaged", "gathered", "ready", "promoted", "aside log", "up log", "up node.json"} {
		if !ended[step] {
			t.Errorf("no step %q in %q", step, steps)
		}
	}
	if _, err := os.Stat(filepath.Join(m.o.Data, r.Aside, logDir)); err != nil {
		t.Errorf("the damaged log was not kept: %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.o.Data, restoringDir)); !os.IsNotExist(err) {
		t.Errorf("the restore left something: %v", err)
	}
	m.start()
	w.caughtUp(m.put("one", "more"))
	wantSame(t, m, w)
}

// snapshotOf lists the names and sizes of what a data directory holds, the restore's own
// aside, and locks, which every attempt to start touches.
func snapshotOf(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == restoringDir {
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err == nil && !e.IsDir() && !strings.Contains(strings.ToLower(e.Name()), "lock") {
			list = append(list, strings.TrimPrefix(path, dir)+" "+fmt.Sprint(info.Size()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
