package demo

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// secure makes an authority, which the nodes get their certificates of.
func (s *show) secure() error {
	a, err := ca.Init(filepath.Join(s.Dir, "ca"), ca.Options{TrustDomain: "demo.internal"})
	if err != nil {
		return fmt.Errorf("make an authority: %w", err)
	}
	return s.fleet.UseTLS(a)
}

// lookOn is a command for another terminal.
func (s *show) lookOn() string {
	return environment(s.fleet.Client()) + command(s.Binary, "status", "--watch", "--addr", s.manager.Addrs.HTTP)
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
	client, operator := environment(s.fleet.Client()), environment(s.fleet.Operator())
	return []string{
		command(manager...) + " &",
		command(start...) + " &",
		client + command(s.Binary, "status", "--addr", s.manager.Addrs.HTTP),
		client + command(s.Binary, "put", "greeting", "hello", "--addr", s.manager.Addrs.HTTP),
		client + command(s.Binary, "get", "greeting", "--addr", worker.Addrs.HTTP),
		operator + command(s.Binary, "snapshot", "--addr", s.manager.Addrs.HTTP),
	}, nil
}

// environment is what is put in front of a command of somebody with a certificate.
func environment(f trust.Files) string {
	if f == (trust.Files{}) {
		return ""
	}
	return fmt.Sprintf("QS_TLS_CA=%s QS_TLS_CERT=%s QS_TLS_KEY=%s ", term.ShellWord(f.CA), term.ShellWord(f.Cert), term.ShellWord(f.Key))
}

func command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = term.ShellWord(w)
	}
	return strings.Join(quoted, " ")
}
