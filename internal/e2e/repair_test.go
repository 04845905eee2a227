package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// TestRepair damages the live environment of a worker that serves reads: scrub finds
// that, reads are refused, the worker mends itself of what is on its disk without a
// byte of a snapshot from anybody, and serves again. Nobody ever reads anything wrong.
func TestRepair(t *testing.T) {
	if os.Getenv("QS_E2E") == "" {
		t.Skip("needs the built binary: run make e2e")
	}
	t.Parallel()
	f := newStory(t, os.Getenv("QS_PEER"), true)
	m := f.start("manager", "m1")
	value := strings.Repeat("v", 400)
	write := func(from, to int, more ...map[string]string) {
		t.Helper()
		ops := more
		for i := from; i < to; i++ {
			ops = append(ops, map[string]string{"op": "put", "key": fmt.Sprintf("key-%06d", i), "value": value})
		}
		if err := m.Call(t.Context(), http.MethodPost, "/v1/txn", map[string]any{"ops": ops}, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 8000)
	f.run("snapshot", "--addr", m.Addrs.HTTP)
	w := f.start("worker", "w1")
	f.converged(time.Minute, m, "m1", "w1")
	// The pair that nobody reads: only a scrub finds its damage, however fast readers are.
	write(8000, 10000, map[string]string{"op": "put", "key": "rare", "value": strings.Repeat("r", 400)})
	before := f.converged(time.Minute, m, "m1", "w1")["w1"]
	if before.BytesFromManagers == 0 || before.SnapshotSeq == 0 {
		t.Fatalf("the worker has no snapshot: %+v", before)
	}

	readers := newReaders(t, w, value)
	repaired := func(kind string, times int) {
		t.Helper()
		want := regexp.MustCompile(fmt.Sprintf(`(?m)^qs_repairs_total{kind="%s",result="ok"} %d$`, kind, times))
		err := fleet.Until(t.Context(), time.Minute, func() error {
			var metrics string
			if err := w.Call(t.Context(), http.MethodGet, "/metrics", nil, &metrics); err != nil || want.MatchString(metrics) {
				return err
			}
			return errors.New("not repaired yet")
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, w.Tail(20))
		}
		f.converged(time.Minute, w, "m1", "w1")
	}
	step(t, "damage a live file, and scrub", func() {
		damage(t, environment(t, w), "rrrrrrrr")
		out, err := f.try("scrub", "--addr", w.Addrs.HTTP, "--part", "store", "--rate", "0", "--json")
		if err == nil || !strings.Contains(out, `"sound":false`) {
			t.Fatalf("scrub: %s %v", out, err)
		}
	})
	step(t, "mended of what is on the disk", func() {
		repaired("store_local", 1)
	})
	// It may be back before anybody asks.
	if readers.stop(); readers.served == 0 {
		t.Errorf("no reads were served, %d refused", readers.refused)
	}
	after, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a := after["w1"]; a.BytesFromManagers != before.BytesFromManagers || a.BytesFromWorkers != before.BytesFromWorkers {
		t.Errorf("snapshot bytes were fetched: %+v, before %+v", a, before)
	}
	var metrics string
	if err := w.Call(t.Context(), http.MethodGet, "/metrics", nil, &metrics); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`qs_repair_bytes_fetched_total{kind="store_local"} 0`,
		`qs_damage_findings_total{part="store"} 1`, `qs_scrub_passes_total{part="store",result="damaged"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	if kept, _ := filepath.Glob(filepath.Join(w.Data, "store", "*.damaged")); len(kept) != 1 {
		t.Errorf("evidence: %q", kept)
	}
	step(t, "scrub again", func() { f.run("scrub", "--addr", w.Addrs.HTTP, "--rate", "0") })
	met := func(kind string, times int) {
		readers := newReaders(t, w, value)
		damage(t, environment(t, w), "vvvvvvvv")
		repaired(kind, times)
		readers.stop()
		if readers.refused == 0 || readers.served == 0 {
			t.Errorf("%d reads were refused, %d served", readers.refused, readers.served)
		}
	}
	step(t, "damage that a read meets first", func() { met("store_local", 2) })
	step(t, "and again: what is on the disk did not last", func() { met("store_(mint|bootstrap)", 1) })

	step(t, "a file cut short while nobody looks", func() {
		w.Kill()
		env := environment(t, w)
		info, err := os.Stat(env)
		if err == nil {
			err = os.Truncate(env, info.Size()/2)
		}
		if err != nil {
			t.Fatal(err)
		}
		w = f.start("worker", "w1")
		a := f.converged(time.Minute, w, "m1", "w1")["w1"] // the manager may tell of its life before
		if a.BytesFromManagers+a.BytesFromWorkers != 0 {
			t.Errorf("snapshot bytes were fetched: %+v\n%s", a, w.Tail(40))
		}
	})
	step(t, "the writer refuses, and says what to do", func() {
		m.Kill()
		env := environment(t, m)
		damage(t, env, "vvvvvvvv")
		_, err := f.Start(t.Context(), "manager", "m1")
		var exit *fleet.ExitError
		if !errors.As(err, &exit) || !strings.Contains(m.Tail(5), "qs-peer restore --data") {
			t.Errorf("start: %v; it said:\n%s", err, m.Tail(5))
		}
	})
}

// environment returns the file that a node serves from.
func environment(t *testing.T, n *fleet.Node) string {
	t.Helper()
	current, err := os.ReadFile(filepath.Join(n.Data, "store", "CURRENT"))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(n.Data, "store", strings.TrimSpace(string(current)), "data.mdb")
}

// damage changes a byte of a value with the given bytes in every page of the file that
// holds one, live or not.
func damage(t *testing.T, path, value string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	buf := make([]byte, page)
	changed := 0
	for off := int64(0); off+page <= info.Size(); off += page {
		if _, err := file.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		i := bytes.LastIndex(buf, []byte(value)) // the first may be of the space that is free
		if i < 0 {
			continue
		}
		if _, err := file.WriteAt([]byte{'x'}, off+int64(i)+4); err != nil {
			t.Fatal(err)
		}
		changed++
	}
	if err := file.Sync(); err != nil || changed == 0 {
		t.Fatalf("%d pages changed, %v", changed, err)
	}
}

// readers read from a node all the time and hold what they get against what was
// written.
type readers struct {
	stop            func() // once one more read was served
	served, refused int    // once it stopped
}

func newReaders(t *testing.T, n *fleet.Node, value string) *readers {
	ctx, cancel := context.WithCancel(t.Context())
	r := &readers{}
	var mu sync.Mutex
	var running sync.WaitGroup
	for first := range 4 {
		running.Go(func() {
			for i := first; ctx.Err() == nil; i = (i + 997) % 10000 {
				var got string
				err := n.Call(ctx, http.MethodGet, fmt.Sprintf("/v1/kv/key-%06d", i), nil, &got)
				var status *fleet.StatusError
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case err == nil && got == value:
					r.served++
				case errors.As(err, &status) && status.Code == http.StatusServiceUnavailable:
					r.refused++
				default:
					t.Errorf("read of key %d: %.40q %v", i, got, err)
				}
				mu.Unlock()
			}
		})
	}
	end := func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(end)
	served := func() int {
		mu.Lock()
		defer mu.Unlock()
		return r.served
	}
	r.stop = func() {
		t.Helper()
		before := served()
		err := fleet.Until(ctx, time.Minute, func() error {
			if served() == before {
				return errors.New("no more reads are served")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		end()
	}
	return r
}
