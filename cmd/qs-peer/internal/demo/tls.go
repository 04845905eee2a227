package demo

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/ca"
)

// secure makes an authority, which the nodes get their certificates of.
func (s *show) secure() error {
	a, err := ca.Init(filepath.Join(s.Dir, "ca"), ca.Options{TrustDomain: "demo.internal"})
	if err != nil {
		return fmt.Errorf("make an authority: %w", err)
	}
	return s.fleet.UseTLS(a)
}

// with returns the lines of a shell that run the binary as somebody, if that is not nil.
func (s *show) with(who *ca.Issued, args ...string) (lines []string) {
	if who != nil {
		lines = append(lines, ". "+term.ShellWord(who.Env))
	}
	return append(lines, command(append([]string{s.Binary}, args...)...))
}

// commands start the manager and a worker again on what was kept, and use them.
func (s *show) commands() ([]string, error) {
	manager, err := s.fleet.Command(s.manager)
	if err != nil {
		return nil, err
	}
	worker := s.fleet.Node(s.workers[0])
	start, err := s.fleet.Command(worker, s.manager.Addrs.Gossip)
	if err != nil {
		return nil, err
	}
	there := []string{"--addr", s.manager.Addrs.HTTP}
	return slices.Concat(
		[]string{command(manager...) + " &", command(start...) + " &"},
		s.with(s.fleet.Client(), append([]string{"status"}, there...)...),
		s.with(nil, append([]string{"put", "greeting", "hello"}, there...)...),
		s.with(nil, "get", "greeting", "--addr", worker.Addrs.HTTP),
		s.with(s.fleet.Operator(), append([]string{"snapshot"}, there...)...),
	), nil
}

// command is a line of a shell.
func command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = term.ShellWord(w)
	}
	return strings.Join(quoted, " ")
}
