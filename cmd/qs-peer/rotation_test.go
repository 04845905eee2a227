package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// TestRotationUnderLoad replaces every key, and then the authority, under a fleet that
// is read and written: over connections that stay and over new ones. No request fails.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	bin, err := exec.LookPath("qs-peer")
	if err != nil {
		t.Fatal(err)
	}
	r := &rotation{T: t, dir: t.TempDir()}
	old := r.authority("old")
	f := fleet.New(bin, r.dir)
	defer f.Close()
	if err := f.UseTLS(old); err != nil {
		t.Fatal(err)
	}
	for _, n := range []struct{ role, name string }{{"manager", "m1"}, {"worker", "w1"}, {"worker", "w2"}} {
		started, err := f.Start(t.Context(), n.role, n.name)
		if err != nil {
			t.Fatal(err)
		}
		r.nodes = append(r.nodes, started)
	}
	me, err := old.Issue(ca.Request{Role: trust.RoleClientWrite, Colo: "default", Name: "me"})
	if err != nil {
		t.Fatal(err)
	}
	r.me = me.Files
	first, err := trust.Open(trust.Options{Files: r.me})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.nodes[0].Converged(t.Context(), time.Minute, []string{"m1", "w1", "w2"}, nil); err != nil {
		t.Fatal(err)
	}
	stop := r.load()

	issue := func(a *ca.Authority) {
		t.Helper()
		for _, n := range r.nodes {
			r.issue(a, trust.Role(n.Role), n.Name, filepath.Join(old.Dir(), "nodes", n.Name))
		}
		r.issue(a, trust.RoleClientWrite, "me", me.Dir)
	}
	everyCA := func(text []byte) {
		t.Helper()
		for _, dir := range []string{"nodes/m1", "nodes/w1", "nodes/w2", "me"} {
			path := filepath.Join(old.Dir(), dir, "ca.pem")
			if err := os.WriteFile(path+".new", text, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"every key", func() { issue(old) }},
		{"two authorities", func() {
			next := r.authority("next")
			r.copy(filepath.Join(old.Dir(), "trusted-keys"), filepath.Join(next.Dir(), "trusted-keys"))
			everyCA(append(r.read(old.File()), r.read(next.File())...))
		}},
		{"every certificate, by the next authority", func() { issue(r.open("next")) }},
		{"the next authority alone", func() { everyCA(r.read(r.open("next").File())) }},
	} {
		before := r.reloads()
		step.do()
		r.until(func() error {
			for i, n := range r.reloads() {
				if n <= before[i] {
					return fmt.Errorf("%s has not taken it up", r.nodes[i].Name)
				}
			}
			return nil
		})
		seen := r.done.Load()
		r.until(func() error { // and goes on
			if r.done.Load() < seen+50 {
				return fmt.Errorf("%d requests since", r.done.Load()-seen)
			}
			return nil
		})
		t.Logf("%s: %d requests so far", step.what, r.done.Load())
	}
	stop()
	if n := r.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed", n, r.done.Load()+n)
	}
	// The old certificate has had its time.
	stale := &http.Client{Transport: &http.Transport{TLSClientConfig: first.ClientConfig(nil)}}
	if resp, err := stale.Get("https://" + r.nodes[0].Addrs.HTTP + "/healthz"); err == nil {
		resp.Body.Close()
		t.Errorf("a certificate by the old authority was answered with %s", resp.Status)
	}
}

type rotation struct {
	*testing.T
	dir          string
	nodes        []*fleet.Node
	me           trust.Files
	done, failed atomic.Int64
}

func (r *rotation) authority(name string) *ca.Authority {
	r.Helper()
	a, err := ca.Init(filepath.Join(r.dir, name), ca.Options{TrustDomain: "rotation.test"})
	if err != nil {
		r.Fatal(err)
	}
	return a
}

func (r *rotation) open(name string) *ca.Authority {
	r.Helper()
	a, err := ca.Open(filepath.Join(r.dir, name))
	if err != nil {
		r.Fatal(err)
	}
	return a
}

func (r *rotation) issue(a *ca.Authority, role trust.Role, name, out string) {
	r.Helper()
	if _, err := a.Issue(ca.Request{Role: role, Colo: "default", Name: name, Out: out, NewKey: true}); err != nil {
		r.Fatal(err)
	}
}

func (r *rotation) read(path string) []byte {
	r.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	return b
}

func (r *rotation) copy(from, to string) {
	r.Helper()
	if err := os.WriteFile(to, r.read(from), 0o644); err != nil {
		r.Fatal(err)
	}
}

// load reads and writes until stop is called.
func (r *rotation) load() (stop func()) {
	ctx, cancel := context.WithCancel(r.Context())
	var all sync.WaitGroup
	again := func(ask func() error) {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := ask(); ctx.Err() != nil {
					return
				} else if err != nil {
					r.failed.Add(1)
					r.Log(err)
				} else {
					r.done.Add(1)
				}
			}
		})
	}
	connect := func(n *fleet.Node) (*client.Client, error) {
		// Files that are replaced at this moment may not match; a program that
		// starts then tries again.
		for {
			c, err := client.New(client.Options{Addr: n.Addrs.HTTP, TLS: r.me, Silence: time.Minute})
			if err == nil || ctx.Err() != nil {
				return c, err
			}
		}
	}
	write := func(c *client.Client) error {
		_, err := c.Put(ctx, []byte("key"), []byte(time.Now().String()))
		return err
	}
	read := func(c *client.Client) error {
		_, _, err := c.Get(ctx, []byte("key"))
		return err
	}
	for i, n := range r.nodes {
		ask := read
		if i == 0 {
			ask = write
		}
		// Over a connection that stays.
		c, err := connect(n)
		if err != nil {
			r.Fatal(err)
		}
		all.Go(func() { <-ctx.Done(); c.Close() })
		again(func() error { return ask(c) })
		// Over a new one each time.
		again(func() error {
			c, err := connect(n)
			if err != nil {
				return err
			}
			defer c.Close()
			return ask(c)
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

var reloadsDone = regexp.MustCompile(`(?m)^qs_tls_reloads_total\{result="done"\} (\d+)`)

// reloads returns how often each node took its files up.
func (r *rotation) reloads() []int {
	r.Helper()
	counts := make([]int, len(r.nodes))
	creds, err := trust.Open(trust.Options{Files: r.me})
	if err != nil {
		r.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: creds.ClientConfig(nil)}}
	defer c.CloseIdleConnections()
	for i, n := range r.nodes {
		resp, err := c.Get("https://" + n.Addrs.HTTP + "/metrics")
		if err != nil {
			r.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		found := reloadsDone.FindSubmatch(text)
		if err != nil || found == nil {
			r.Fatalf("%s has no qs_tls_reloads_total (%v)", n.Name, err)
		}
		counts[i], _ = strconv.Atoi(string(found[1]))
	}
	return counts
}

func (r *rotation) until(ask func() error) {
	r.Helper()
	if err := fleet.Until(r.Context(), time.Minute, ask); err != nil {
		r.Fatal(err)
	}
}
