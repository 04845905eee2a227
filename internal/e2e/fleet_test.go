package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// story is a fleet whose every failure ends the test.
type story struct {
	*fleet.Fleet
	t   *testing.T
	bin string
	dir string
}

// newStory begins a fleet over mutual TLS, or over plain TCP.
func newStory(t *testing.T, bin string, tls bool) *story {
	dir := t.TempDir()
	s := &story{Fleet: fleet.New(bin, dir), t: t, bin: bin, dir: dir}
	t.Cleanup(s.Close)
	if tls {
		a, err := ca.Init(filepath.Join(dir, "ca"), ca.Options{TrustDomain: "e2e.internal"})
		if err == nil {
			err = s.UseTLS(a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *story) start(role, name string) *fleet.Node {
	s.t.Helper()
	n, err := s.Start(s.t.Context(), role, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// rebuild kills a node, removes all it held and starts it again.
func (s *story) rebuild(names ...string) {
	s.t.Helper()
	for _, name := range names {
		n := s.Node(name)
		n.Kill()
		if err := n.Wipe(); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, name := range names {
		s.start(s.Node(name).Role, name)
	}
}

func (s *story) converged(limit time.Duration, from *fleet.Node, names ...string) map[string]fleet.Member {
	s.t.Helper()
	members, err := from.Converged(s.t.Context(), limit, names, nil)
	if err != nil {
		var logs strings.Builder
		for _, name := range names {
			fmt.Fprintf(&logs, "--- %s\n%s\n", name, s.Node(name).Tail(12))
		}
		s.t.Fatalf("the fleet did not converge: %v\n%s", err, logs.String())
	}
	return members
}

// run runs a command of the binary and returns what it printed.
func (s *story) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *story) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, args...)
	who := s.Client()
	if args[0] == "snapshot" || args[0] == "scrub" {
		who = s.Operator()
	}
	if who != nil {
		cmd.Env = append(os.Environ(), "QS_TLS_CA="+who.Files.CA, "QS_TLS_CERT="+who.Files.Cert, "QS_TLS_KEY="+who.Files.Key)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("qs-peer %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
