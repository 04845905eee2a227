package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPairsAreAlwaysTheSame(t *testing.T) {
	var a, b bytes.Buffer
	if err := errors.Join(writePairs(&a, 1000), writePairs(&b, 1000)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two runs differ")
	}
	keys := map[string]bool{}
	for line := range bytes.Lines(a.Bytes()) {
		var pair struct{ Key, Value string }
		if err := json.Unmarshal(line, &pair); err != nil || pair.Value == "" {
			t.Fatalf("%s: %v", line, err)
		}
		keys[pair.Key] = true
	}
	if len(keys) != 1000 {
		t.Errorf("%d different keys of 1000", len(keys))
	}
}

func TestDirIsLeftAsItWas(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	empty := filepath.Join(dir, "empty")
	for _, d := range []string{full, empty} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, refused := range []string{full, file} {
		o := Options{Dir: refused}
		var refusal *DirError
		if _, err := o.prepareDir(); !errors.As(err, &refusal) {
			t.Errorf("%s: error %v", refused, err)
		}
	}
	for _, step := range []struct {
		dir   string
		stays bool
	}{{empty, true}, {filepath.Join(dir, "new"), false}, {"", false}} {
		o := Options{Dir: step.dir}
		remove, err := o.prepareDir()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(o.Dir, "node/log"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := remove(); err != nil {
			t.Errorf("%q: remove: %v", step.dir, err)
		}
		entries, err := os.ReadDir(o.Dir)
		if len(entries) > 0 || (err == nil) != step.stays {
			t.Errorf("%q: %d entries left, %v", step.dir, len(entries), err)
		}
	}
}

// The writer loses no write while the manager is away, and its last one is
// acknowledged.
func TestWriterTriesAgain(t *testing.T) {
	var away atomic.Bool
	var puts atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, `{"seq":%d}`, puts.Add(1))
	}))
	defer server.Close()
	newClient := func() *client.Client {
		c, err := client.New(client.Options{Addr: server.URL, Silence: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	w := startWriter(t.Context(), newClient())
	until(t, func() bool { return puts.Load() > 2 })
	away.Store(true)
	w.moveTo(newClient())
	away.Store(false)
	before := puts.Load()
	until(t, func() bool { return puts.Load() > before })
	writes, err := w.finish(t.Context())
	if err != nil || int64(writes.Acknowledged) != puts.Load() {
		t.Errorf("%+v, %d arrived, error %v", writes, puts.Load(), err)
	}
	w.stop()

	ctx, cancel := context.WithCancel(t.Context())
	w = startWriter(ctx, newClient())
	cancel()
	if _, err := w.finish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited too long")
		}
	}
}
