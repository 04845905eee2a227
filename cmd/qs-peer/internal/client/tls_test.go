package client

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// serveTLS runs a node with a certificate, or without if files is empty, and returns its
// address.
func serveTLS(t *testing.T, files trust.Files) string {
	t.Helper()
	var creds *trust.Credentials
	if files != (trust.Files{}) {
		var err error
		if creds, err = trust.Open(trust.Options{Files: files}); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if id, ok := trust.FromState(r.TLS); ok && !id.Role.May(trust.VerbRead) {
				w.WriteHeader(http.StatusForbidden)
				_, _ = io.WriteString(w, `{"error":"op is an operator, and may not read keys and values: that is for worker","roles":["worker"]}`)
				return
			}
			_, _ = io.WriteString(w, "value")
		}),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelWarn),
	}
	done := make(chan struct{})
	guarded := edge.New(edge.Options{Credentials: creds}).Listen(&refreshing{ln, creds}, edge.ListenOptions{Name: "http"})
	go func() {
		defer close(done)
		_ = server.Serve(guarded)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return ln.Addr().String()
}

// refreshing takes new files up before each connection.
type refreshing struct {
	net.Listener
	creds *trust.Credentials
}

func (l *refreshing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.creds != nil {
		_, err = l.creds.Refresh()
	}
	return c, err
}

// A client that lives long takes up files that were replaced when it connects anew, and
// goes on with those it has while they can not be used.
func TestTLSReplaced(t *testing.T) {
	old, next := trusttest.New(t), trusttest.New(t)
	hour := time.Now().Add(time.Hour)
	node, me := old.Node(t, trust.RoleWorker, "w1"), old.Node(t, trust.RoleClientRead, "me")
	c, err := New(Options{Addr: serveTLS(t, node), TLS: me, Silence: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get := func(when string) {
		t.Helper()
		c.Close() // what is idle
		if _, _, err := c.Get(t.Context(), []byte("k")); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	get("at first")
	key, err := os.ReadFile(me.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(me.Key, key[:len(key)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	get("with half a key")
	next.Issue(t, filepath.Dir(me.Cert), trusttest.Identity(trust.RoleClientRead, "me"), hour)
	next.Issue(t, filepath.Dir(node.Cert), trusttest.Identity(trust.RoleWorker, "w1"), hour)
	get("with the next authority")
}

func TestTLS(t *testing.T) {
	ours, theirs := trusttest.New(t), trusttest.New(t)
	hour := time.Now().Add(time.Hour)
	node := ours.Node(t, trust.RoleWorker, "w1")
	me := ours.Node(t, trust.RoleClientRead, "me")
	operator := ours.Node(t, trust.RoleOperator, "op")
	elsewhere := trusttest.Identity(trust.RoleWorker, "w2")
	elsewhere.Domain = "other.example"
	// stranger trusts our authority, and has a certificate of another one.
	stranger := theirs.Node(t, trust.RoleClientRead, "me")
	strangerWhoTrustsUs := trust.Files{CA: me.CA, Cert: stranger.Cert, Key: stranger.Key}
	for _, tt := range []struct {
		name   string
		node   trust.Files
		scheme string // in front of the address
		client trust.Files
		want   []string // parts of the error; none: it works
	}{
		{"with certificates", node, "", me, nil},
		{"with certificates and https", node, "https://", me, nil},
		{"without", trust.Files{}, "", trust.Files{}, nil},
		{"with certificates, and http on purpose", trust.Files{}, "http://", me, nil},
		{"the node speaks TLS", node, "", trust.Files{}, []string{"speaks TLS", "--tls-cert", "QS_TLS_CERT"}},
		{"the node does not", trust.Files{}, "", me, []string{"does not speak TLS", "http://127.0.0.1:"}},
		{"https without certificates", node, "https://", trust.Files{}, []string{"--tls-ca", "QS_TLS_CA"}},
		{"half of the files", node, "", trust.Files{CA: me.CA}, []string{"go together"}},
		{"files that are not there", node, "", trust.Files{CA: me.CA, Cert: me.Cert, Key: "nowhere.pem"}, []string{"nowhere.pem"}},
		{"a client in place of a node", ours.Node(t, trust.RoleClientWrite, "w1"), "", me, []string{"no node to be trusted", "wrong_role", "client-write"}},
		{"a node of another domain", ours.Issue(t, t.TempDir(), elsewhere, hour), "", me, []string{"wrong_domain", "other.example"}},
		{"a node of another authority", theirs.Node(t, trust.RoleWorker, "w1"), "", me, []string{"authorities in --tls-ca"}},
		{"a client of another authority", node, "", strangerWhoTrustsUs, []string{me.CA}},
		{"a role that may not", node, "", operator, []string{"op is an operator", "that is for worker"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := New(Options{Addr: tt.scheme + serveTLS(t, tt.node), TLS: tt.client, Silence: 10 * time.Second})
			if err == nil {
				defer c.Close()
				var value []byte
				if value, _, err = c.Get(context.Background(), []byte("k")); err == nil && string(value) != "value" {
					t.Errorf("got %q", value)
				}
			}
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("error %v", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
		})
	}
}

// TestTLSTold has the error words for what only shows on the connection.
func TestTLSTold(t *testing.T) {
	files := trusttest.New(t).Node(t, trust.RoleClientRead, "me")
	c, err := New(Options{Addr: "127.0.0.1:1", TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&trust.RefusedError{Reason: trust.Expired, Err: errors.New("x509: expired")}, "expired or not valid yet"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, "refused the certificate of me (client-read)"},
	} {
		if got := c.explain(context.Background(), tt.err); !strings.Contains(got.Error(), tt.want) {
			t.Errorf("%v becomes %q, want %q", tt.err, got, tt.want)
		}
	}
}
