package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// TestRestore damages and loses a writer's data, in a fleet with certificates and
// signatures: it refuses to run on it, is restored from a worker, and goes on with
// every entry that was acknowledged and that anybody has.
func TestRestore(t *testing.T) {
	t.Parallel()
	bin, err := exec.LookPath("qs-peer")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	authority, err := ca.Init(filepath.Join(dir, "ca"), ca.Options{TrustDomain: "restore.test"})
	if err != nil {
		t.Fatal(err)
	}
	r := &restoration{T: t, f: fleet.New(bin, dir), want: map[string]string{}}
	defer r.f.Close()
	if err := r.f.UseTLS(authority); err != nil {
		t.Fatal(err)
	}
	r.m, r.w = r.start("manager", "m1"), r.start("worker", "w1")
	r.put(200)
	if err := r.m.Call(t.Context(), http.MethodPost, "/v1/snapshots", nil, nil); err != nil {
		t.Fatal(err)
	}
	r.put(100)
	r.converge()

	// Twenty entries are known to the writer only, and its log is damaged before them.
	r.stop(r.w)
	r.put(20)
	r.stop(r.m)
	log := filepath.Join(r.m.Data, "log", "00000000000000000001.log")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/3] ^= 1
	if err := os.WriteFile(log, text, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := r.f.Start(t.Context(), "manager", "m1"); err == nil || !strings.Contains(err.Error(), "is damaged at offset") {
		t.Fatalf("started on a damaged log: %v", err)
	}
	r.w = r.start("worker", "w1")
	// Wherever it is killed, it goes on.
	for after := 50 * time.Millisecond; after < time.Second && r.killed(after); after = after * 3 / 2 {
	}
	got := r.restore()
	if got.Salvaged != 20 || got.Lost != 0 || got.Head != 321 || got.Aside == "" {
		t.Errorf("restored %+v", got)
	}
	if _, err := os.Stat(filepath.Join(r.m.Data, got.Aside, "log")); err != nil {
		t.Errorf("the damaged log was not kept: %v", err)
	}
	r.m = r.start("manager", "m1")
	r.put(10)
	r.converge()

	// All is lost.
	r.stop(r.m)
	if err := r.m.Wipe(); err != nil {
		t.Fatal(err)
	}
	if got := r.restore(); got.Head != 331 || got.Salvaged != 0 || got.Lost != 0 || got.Aside != "" {
		t.Errorf("restored %+v", got)
	}
	r.m = r.start("manager", "m1")
	r.put(10)
	r.converge()

	// The log is lost, with entries that nobody else has; what the writer signed tells.
	r.stop(r.w)
	if err := r.m.Call(t.Context(), http.MethodPost, "/v1/txn", map[string]any{"ops": []map[string]string{{"op": "put", "key": "given up", "value": "?"}}}, nil); err != nil {
		t.Fatal(err)
	}
	r.signed(342)
	r.stop(r.m)
	if err := os.RemoveAll(filepath.Join(r.m.Data, "log")); err != nil {
		t.Fatal(err)
	}
	r.w = r.start("worker", "w1")
	if out, err := r.run(); err == nil || !strings.Contains(out, "what the writer signed tells of entries up to 342") {
		t.Fatalf("gave an acknowledged entry up without being asked to: %v\n%s", err, out)
	}
	if got := r.restore("--accept-loss"); got.Head != 341 {
		t.Errorf("restored %+v", got)
	}
	r.m = r.start("manager", "m1")
	r.put(10)
	r.converge()
}

type restoration struct {
	*testing.T
	f    *fleet.Fleet
	m, w *fleet.Node
	want map[string]string
}

func (r *restoration) start(role, name string) *fleet.Node {
	r.Helper()
	n, err := r.f.Start(r.Context(), role, name)
	if err != nil {
		r.Fatal(err)
	}
	return n
}

func (r *restoration) stop(n *fleet.Node) {
	r.Helper()
	if err := n.Stop(); err != nil {
		r.Fatal(err)
	}
}

// put writes n entries.
func (r *restoration) put(n int) {
	r.Helper()
	for range n {
		key := fmt.Sprintf("key-%d", len(r.want)%150)
		if len(r.want) >= 150 {
			key = fmt.Sprintf("more-%d", len(r.want))
		}
		value := fmt.Sprintf("%d %s", len(r.want), strings.Repeat("v", 500))
		op := map[string]any{"ops": []map[string]string{{"op": "put", "key": key, "value": value}}}
		if err := r.m.Call(r.Context(), http.MethodPost, "/v1/txn", op, nil); err != nil {
			r.Fatal(err)
		}
		r.want[key] = value
	}
}

// signed waits until the writer signed an entry.
func (r *restoration) signed(seq uint64) {
	r.Helper()
	err := fleet.Until(r.Context(), time.Minute, func() error {
		text, err := os.ReadFile(filepath.Join(r.m.Data, "heads", "newest"))
		if err == nil && !strings.Contains(string(text), fmt.Sprintf("\npos %d/", seq)) {
			err = fmt.Errorf("entry %d is not signed", seq)
		}
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
}

// converge waits until both hold the same, and checks what.
func (r *restoration) converge() {
	r.Helper()
	if _, err := r.m.Converged(r.Context(), time.Minute, []string{"m1", "w1"}, nil); err != nil {
		r.Fatalf("%v\n%s\n%s", err, r.m.Tail(20), r.w.Tail(20))
	}
	for _, n := range []*fleet.Node{r.m, r.w} {
		for key, value := range r.want {
			var got string
			if err := n.Call(r.Context(), http.MethodGet, "/v1/kv/"+key, nil, &got); err != nil || got != value {
				r.Fatalf("%s has %q as %.20q, want %.20q, %v", n.Name, key, got, value, err)
			}
		}
	}
}

// killed begins the restore of m1 from w1 and kills it, if it is not done before.
func (r *restoration) killed(after time.Duration) bool {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), after)
	defer cancel()
	out, err := r.command(ctx).CombinedOutput()
	if err != nil && ctx.Err() == nil {
		r.Fatalf("%v\n%s", err, out)
	}
	return err != nil
}

// command returns the restore of m1 from w1.
func (r *restoration) command(ctx context.Context, extra ...string) *exec.Cmd {
	r.Helper()
	command, err := r.f.Command(r.m)
	if err != nil {
		r.Fatal(err)
	}
	command[1] = "restore"
	return exec.CommandContext(ctx, command[0], append(command[1:], append(extra, "--json", "--from", r.w.Addrs.HTTP)...)...)
}

// run runs the restore of m1 from w1 and returns what it printed.
func (r *restoration) run(extra ...string) (string, error) {
	r.Helper()
	cmd := r.command(r.Context(), extra...)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		return log.String(), err
	}
	return string(out), nil
}

type restoredJSON struct {
	Head, Salvaged, Lost uint64
	Aside                string
}

func (r *restoration) restore(extra ...string) (got restoredJSON) {
	r.Helper()
	out, err := r.run(extra...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &got)
	}
	if err != nil {
		r.Fatalf("restore: %v\n%s", err, out)
	}
	return got
}
