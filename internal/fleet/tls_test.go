package fleet

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// Nodes of a fleet over TLS have certificates, and it talks to them with its own: to
// whom it means, and as who may do that.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	a, err := ca.Init(filepath.Join(dir, "ca"), ca.Options{TrustDomain: "fleet.test"})
	if err != nil {
		t.Fatal(err)
	}
	f := New("nothing", dir)
	if err := f.UseTLS(a); err != nil {
		t.Fatal(err)
	}
	early, err := f.tlsArgs("worker", "early", nil)
	if err != nil || slices.Contains(early, "--trusted-keys") {
		t.Fatalf("without a manager: %v, %v", early, err)
	}
	manager, err := f.tlsArgs("manager", "m1", []string{"--snapshot-every", "0", "--colo", "mars"})
	if err != nil || !slices.Contains(manager, "--trusted-keys") || !slices.Contains(manager, "--signing-key") {
		t.Fatalf("a manager: %v, %v", manager, err)
	}
	if early, err = f.tlsArgs("worker", "early", nil); err != nil || !slices.Contains(early, "--trusted-keys") || slices.Contains(early, "--signing-key") {
		t.Fatalf("a worker: %v, %v", early, err)
	}
	if again, err := f.tlsArgs("manager", "m1", []string{"--colo", "mars"}); err != nil || !slices.Equal(again, manager) {
		t.Errorf("again: %v, %v", again, err)
	}

	creds, err := trust.Open(trust.Options{Files: trust.Files{CA: manager[1], Cert: manager[3], Key: manager[5]}})
	if err != nil {
		t.Fatal(err)
	}
	if id := creds.Identity().String(); id != "spiffe://fleet.test/qs/manager/mars/m1" {
		t.Errorf("it is %s", id)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _ := trust.FromState(r.TLS)
		fmt.Fprint(w, id.Role)
	}))
	server.Listener = tls.NewListener(server.Listener, creds.ServerConfig())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	defer server.Close()
	n := &Node{Name: "m1", Addrs: Addrs{HTTP: strings.TrimPrefix(server.URL, "http://")}}
	n.moveTo(Loopback, f.tls)
	defer n.caller.close()
	for _, c := range []struct {
		method, path string
		want         trust.Role
	}{
		{http.MethodGet, "/v1/status", trust.RoleClientWrite},
		{http.MethodPost, "/v1/txn", trust.RoleClientWrite},
		{http.MethodGet, "/v1/snapshots", trust.RoleClientWrite},
		{http.MethodPost, "/v1/snapshots", trust.RoleOperator},
	} {
		var role string
		if err := n.Call(t.Context(), c.method, c.path, nil, &role); err != nil || trust.Role(role) != c.want {
			t.Errorf("%s %s as %q, %v; want %s", c.method, c.path, role, err, c.want)
		}
	}
	other := &Node{Name: "m2", Addrs: n.Addrs}
	other.moveTo(Loopback, f.tls)
	defer other.caller.close()
	if err := other.Call(t.Context(), http.MethodGet, "/", nil, nil); trust.ReasonOf(err) != trust.WrongName {
		t.Errorf("another node than the one that was meant: %v", err)
	}
}
