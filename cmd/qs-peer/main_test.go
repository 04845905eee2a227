package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/trust"
)

var noExitWait = [2]string{"GORACE", "atexit_sleep_ms=0"}

func TestMain(m *testing.M) {
	// A program built with the race detector waits a second when it exits, and
	// the scripts run hundreds.
	os.Setenv(noExitWait[0], noExitWait[1])
	testscript.Main(m, map[string]func(){"qs-peer": main})
}

// TestScripts runs testdata/script/*.txtar against the real command and real
// nodes on free ports. Beside testscript's own commands they have
//
//	start ROLE NAME [flags]   runs a node in $WORK/NAME that joins those that run, and sets
//	                          $NAME to its HTTP address, $NAME_gossip and $NAME_peer to others
//	secure                    makes an authority: nodes that are started from now on speak mutual TLS, and
//	                          QS_TLS_CA, QS_TLS_CERT and QS_TLS_KEY are those of a client that may read and write
//	as ROLE NAME              issues a certificate for somebody and has QS_TLS_CA, … be those from now on
//	leave NAME                SIGTERM; the exit status must be 0
//	crash NAME                SIGKILL
//	converge NAME...          waits until all of these serve one position
//	[networks]                is true where networks of namespaces can be made
//	json FILE FIELD...        FILE (or stdout) holds JSON with these fields, nested ones with dots
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			bin, err := exec.LookPath("qs-peer")
			if err != nil {
				return err
			}
			f := fleet.New(bin, env.WorkDir)
			env.Defer(f.Close)
			env.Values["fleet"] = f
			env.Setenv(noExitWait[0], noExitWait[1])
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "networks" {
				return false, fmt.Errorf("there is no condition %s", name)
			}
			return lab.Permitted() == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": scriptStart, "secure": scriptSecure, "as": scriptAs, "leave": scriptLeave, "crash": scriptCrash, "converge": scriptConverge, "json": scriptJSON,
		},
	})
}

func fleetOf(ts *testscript.TestScript) *fleet.Fleet { return ts.Value("fleet").(*fleet.Fleet) }

func nodeOf(ts *testscript.TestScript, name string) *fleet.Node {
	n := fleetOf(ts).Node(name)
	if n == nil {
		ts.Fatalf("no node %s was started", name)
	}
	return n
}

func scriptStart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start ROLE NAME [flags]")
	}
	n, err := fleetOf(ts).Start(context.Background(), args[0], args[1], args[2:]...)
	ts.Check(err)
	ts.Setenv(n.Name, n.Addrs.HTTP)
	ts.Setenv(n.Name+"_gossip", n.Addrs.Gossip)
	ts.Setenv(n.Name+"_peer", n.Addrs.Peer)
}

func scriptSecure(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: secure")
	}
	a, err := ca.Init(ts.MkAbs("ca"), ca.Options{TrustDomain: "script.test"})
	ts.Check(err)
	ts.Check(fleetOf(ts).UseTLS(a))
	setIdentity(ts, fleetOf(ts).Client().Files)
}

func scriptAs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: as ROLE NAME")
	}
	a, err := ca.Open(ts.MkAbs("ca"))
	ts.Check(err)
	issued, err := a.Issue(ca.Request{Role: trust.Role(args[0]), Colo: "default", Name: args[1]})
	ts.Check(err)
	setIdentity(ts, issued.Files)
}

func setIdentity(ts *testscript.TestScript, f trust.Files) {
	ts.Setenv("QS_TLS_CA", f.CA)
	ts.Setenv("QS_TLS_CERT", f.Cert)
	ts.Setenv("QS_TLS_KEY", f.Key)
}

func scriptLeave(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: leave NAME")
	}
	ts.Check(nodeOf(ts, args[0]).Stop())
}

func scriptCrash(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: crash NAME")
	}
	nodeOf(ts, args[0]).Kill()
}

func scriptConverge(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: converge NAME...")
	}
	_, err := nodeOf(ts, args[0]).Converged(context.Background(), time.Minute, args, nil)
	if err != nil {
		for _, name := range args {
			ts.Logf("%s:\n%s", name, nodeOf(ts, name).Tail(10))
		}
		ts.Fatalf("%v", err)
	}
}

func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: json FILE FIELD...")
	}
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &v); err != nil {
		ts.Fatalf("%s is not one JSON value: %v", args[0], err)
	}
	for _, path := range args[1:] {
		if err := hasField(v, path); err != nil {
			ts.Fatalf("%s: %v", args[0], err)
		}
	}
}

// hasField looks a dotted path up; in arrays every element must have the rest.
func hasField(v any, path string) error {
	if path == "" {
		return nil
	}
	switch v := v.(type) {
	case []any:
		if len(v) == 0 {
			return fmt.Errorf("an empty array where %s should be", path)
		}
		for _, e := range v {
			if err := hasField(e, path); err != nil {
				return err
			}
		}
		return nil
	case map[string]any:
		name, rest, _ := strings.Cut(path, ".")
		if field, ok := v[name]; ok {
			return hasField(field, rest)
		}
	}
	return fmt.Errorf("no field %s", path)
}

// Every command has a script of its own, and none is left over.
func TestEveryCommandHasAScript(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if _, err := os.Stat(filepath.Join("testdata/script", cmd.Name()+".txtar")); err != nil {
			t.Error(err)
		}
	}
}

// The help text of every flag says its default.
func TestHelpSaysEveryDefault(t *testing.T) {
	commands := newRoot().Commands()
	for i := 0; i < len(commands); i++ {
		cmd := commands[i]
		commands = append(commands, cmd.Commands()...)
		if cmd.GroupID == "" && !cmd.Parent().HasParent() {
			continue // cobra's own
		}
		for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
			if !strings.Contains(line, "(default") && !strings.Contains(line, "(required)") && !strings.Contains(line, "--help") {
				t.Errorf("%s: no default: %s", cmd.CommandPath(), strings.TrimSpace(line))
			}
		}
	}
}
