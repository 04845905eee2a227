// Package layers checks that packages import only what the architecture allows
// (docs/architecture.md), and that each third-party package has one home.
package layers

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/qs-peer/qs-peer/"

// allowed lists which of our packages each package may import, itself aside.
var allowed = map[string][]string{
	"internal/durable":             {},
	"internal/faultfs":             {"internal/durable"},
	"internal/memnet":              {},
	"internal/powercut":            {"internal/faultfs"},
	"internal/trust":               {},
	"internal/trust/trusttest":     {"internal/trust"},
	"internal/signing":             {"internal/trust"},
	"internal/signing/signingtest": {"internal/signing"},
	"internal/ca":                  {"internal/durable", "internal/signing", "internal/trust"},
	"internal/edge":                {"internal/trust"},
	"txlog":                        {"internal/durable"},
	"chunker":                      {},
	"lmdbstore":                    {"txlog", "internal/durable", "lmdbstore/internal/guard", "lmdbstore/internal/mdbfile"},
	"lmdbstore/internal/guard":     {},
	"lmdbstore/internal/mdbfile":   {},
	"p2p":                          {"txlog", "chunker", "internal/durable", "internal/trust", "p2p/graph", "p2p/lease"},
	"p2p/graph":                    {},
	"p2p/lease":                    {},
	"gossip":                       {"txlog", "internal/trust", "gossip/internal/mesh"},
	"gossip/internal/mesh":         {"internal/trust"},
	"internal/snapshot":            {"txlog", "chunker", "lmdbstore", "internal/durable", "internal/signing"},
	"internal/heads":               {"txlog", "internal/durable", "internal/signing"},
	"internal/compare":             {"txlog"},
	"internal/replica":             {"txlog", "chunker", "internal/heads"},
	"internal/peer": {"txlog", "chunker", "lmdbstore", "p2p", "gossip", "internal/snapshot",
		"internal/replica", "internal/durable", "internal/trust", "internal/edge", "internal/signing", "internal/heads", "internal/compare"},
	"cmd/qs-peer":     {"bench", "bench/contender", "bench/lab", "bench/sim", "bench/torture", "internal/peer", "internal/heads", "internal/fleet", "gossip", "txlog", "chunker", "lmdbstore", "internal/snapshot", "internal/durable", "internal/signing", "internal/ca", "internal/trust"},
	"bench":           {"*"},
	"bench/contender": {"bench/lab", "chunker"},
	"bench/lab":       {},
	"bench/torture":   {"bench/lab", "chunker", "internal/ca", "internal/fleet", "internal/trust", "p2p", "txlog"},
	"bench/sim":       {"bench", "bench/lab", "chunker", "p2p/graph", "p2p/lease"},
	"internal/fleet":  {"internal/ca", "internal/trust"},
	"internal/e2e":    {"internal/ca", "internal/fleet"},
	"internal/layers": {},

	"internal/e2e/disk": {"internal/fleet"},
}

// homes lists where a third-party package may be imported, tests included.
var homes = map[string][]string{
	"github.com/anacrolix/":       {"p2p", "chunker"},
	"github.com/hashicorp/":       {"gossip", "gossip/internal/mesh", "internal/memnet"},
	"github.com/PowerDNS/lmdb-go": {"lmdbstore", "lmdbstore/internal/mdbfile", "bench"},
	"github.com/bmatsuo/lmdb-go":  {"lmdbstore", "lmdbstore/internal/mdbfile", "bench"},
	"github.com/spf13/":           {"cmd/qs-peer"},
	"github.com/vbauerster/":      {"cmd/qs-peer"},
	"go.yaml.in/":                 {"cmd/qs-peer"},
	"github.com/klauspost/":       {"p2p"},
	"github.com/vishvananda/":     {"bench/lab"},
	"github.com/spiffe/":          {"internal/trust"},
	"golang.org/x/mod/":           {"internal/signing"},
}

type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}

// base cuts a command's own subpackages off: cmd/qs-peer/internal/x is cmd/qs-peer.
func base(path string) string {
	path = strings.TrimPrefix(path, module)
	if strings.HasPrefix(path, "cmd/qs-peer/") {
		return "cmd/qs-peer"
	}
	return path
}

func TestLayers(t *testing.T) {
	for _, p := range list(t) {
		name := base(p.ImportPath)
		may, known := allowed[name]
		if !known {
			t.Errorf("%s is not in the table of layers: add it there and to docs/architecture.md", name)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module) || base(imp) == name || slices.Contains(may, "*") {
				continue
			}
			if !slices.Contains(may, base(imp)) {
				t.Errorf("%s must not import %s", name, base(imp))
			}
		}
	}
}

// TestTablesAreOfToday finds rows about what is no longer there, and holds
// docs/architecture.md against the table above.
func TestTablesAreOfToday(t *testing.T) {
	here, imported := map[string]bool{}, map[string]bool{}
	for _, p := range list(t) {
		here[base(p.ImportPath)] = true
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			imported[imp] = true
		}
	}
	for name, may := range allowed {
		if !here[name] {
			t.Errorf("there is no package %s", name)
		}
		for _, imp := range may {
			if imp != "*" && !here[imp] {
				t.Errorf("%s may import %s, which is no package", name, imp)
			}
		}
	}
	for prefix := range homes {
		used := prefix == "github.com/bmatsuo/lmdb-go" // with a build tag only
		for imp := range imported {
			used = used || strings.HasPrefix(imp, prefix)
		}
		if !used {
			t.Errorf("nobody imports %s", prefix)
		}
	}

	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	quoted := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.HasPrefix(line, "| `") {
			continue
		}
		var imports []string
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			imports = append(imports, m[1])
		}
		slices.Sort(imports)
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			name := m[1]
			described[name] = true
			may, known := allowed[name]
			if sorted := slices.Sorted(slices.Values(may)); known && len(imports) > 0 && !slices.Equal(sorted, imports) {
				t.Errorf("docs/architecture.md: %s may import %v, and here %v", name, imports, sorted)
			}
		}
	}
	for name := range described {
		if _, ok := allowed[name]; !ok {
			t.Errorf("docs/architecture.md describes %s, which is not in the table", name)
		}
	}
	for name := range allowed {
		if !described[name] && name != "internal/layers" {
			t.Errorf("docs/architecture.md does not describe %s", name)
		}
	}
}

func TestThirdPartyHomes(t *testing.T) {
	for _, p := range list(t) {
		name := base(p.ImportPath)
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for prefix, where := range homes {
				if strings.HasPrefix(imp, prefix) && !slices.Contains(where, name) {
					t.Errorf("%s must not import %s: its home is %s", name, imp, strings.Join(where, ", "))
				}
			}
		}
	}
}

// TestFaultInjectionStaysInTests keeps the test doubles out of the product. One may be
// made of another.
func TestFaultInjectionStaysInTests(t *testing.T) {
	doubles := []string{module + "internal/faultfs", module + "internal/memnet", module + "internal/powercut"}
	for _, p := range list(t) {
		for _, imp := range p.Imports {
			if slices.Contains(doubles, imp) && base(p.ImportPath) != "bench" && !slices.Contains(doubles, p.ImportPath) {
				t.Errorf("%s imports %s outside its tests", p.ImportPath, imp)
			}
		}
	}
}
