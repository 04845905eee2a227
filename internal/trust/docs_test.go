package trust_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// The table of roles and verbs in docs/security.md is what the code does.
func TestDocsShowTheTable(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var verbs []trust.Verb
	seen := map[trust.Role]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case len(cells) < 3:
		case cells[1] == "role":
			for _, v := range cells[2 : len(cells)-1] {
				verbs = append(verbs, trust.Verb(v))
			}
		case slices.Contains(trust.Roles(), trust.Role(cells[1])):
			role := trust.Role(cells[1])
			seen[role] = true
			if len(cells) != len(verbs)+3 {
				t.Fatalf("%s has %d cells, and there are %d verbs", role, len(cells)-3, len(verbs))
			}
			for i, v := range verbs {
				if want := map[bool]string{true: "yes", false: "–"}[role.May(v)]; cells[i+2] != want {
					t.Errorf("%s, %s: the page says %q, the code %q", role, v, cells[i+2], want)
				}
			}
		}
	}
	if !slices.Equal(verbs, trust.Verbs()) {
		t.Errorf("the page has the verbs %v, the code %v", verbs, trust.Verbs())
	}
	for _, role := range trust.Roles() {
		if !seen[role] {
			t.Errorf("the page has no line for %s", role)
		}
	}
}
