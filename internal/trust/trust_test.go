package trust_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseIdentity(t *testing.T) {
	long := strings.Repeat("x", 129)
	for uri, want := range map[string]string{ // "" is good, else a part of the error
		"spiffe://example.org/qs/worker/fra1/w-1":         "",
		"spiffe://example.org/qs/client-read/default/A.b": "",
		"spiffe://example.org/qs/worker/fra1":             "want spiffe://",
		"spiffe://example.org/qs/worker/fra1/w1/x":        "want spiffe://",
		"spiffe://example.org/qx/worker/fra1/w1":          "want spiffe://",
		"spiffe://example.org/qs/root/fra1/w1":            `role "root" is none of worker, manager`,
		"spiffe://example.org/qs/worker//w1":              "path",
		"spiffe://example.org/qs/worker/../w1":            "path",
		"spiffe://example.org/qs/worker/fra1/w 1":         "path",
		"spiffe://example.org/qs/worker/fra1/" + long:     "at most 64 and 128 bytes",
		"spiffe://Example.org/qs/worker/fra1/w1":          "trust domain",
		"https://example.org/qs/worker/fra1/w1":           "scheme",
		"":                                                "cannot be empty",
	} {
		id, err := trust.ParseIdentity(uri)
		switch {
		case want == "" && (err != nil || id.String() != uri || id.Validate() != nil):
			t.Errorf("%s: %v, %v", uri, id, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v; want one with %q", uri, err, want)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("spiffe://example.org/qs/worker/fra1/w-1")
	f.Add("spiffe://example.org/qs/manager//")
	f.Fuzz(func(t *testing.T, uri string) {
		if id, err := trust.ParseIdentity(uri); err == nil && id.String() != uri {
			t.Errorf("%q is read as %q", uri, id)
		}
	})
}

// meet makes a connection with a server's and a client's configuration, and sends a
// byte from the server to the client. It returns each side's error and the identity
// that the server saw.
func meet(t *testing.T, server, client *tls.Config) (seen trust.Identity, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if server == nil {
			_, serverErr = io.WriteString(c, "220 plain text, no TLS here\r\n")
			return
		}
		s := tls.Server(c, server)
		if serverErr = s.Handshake(); serverErr == nil {
			seen, _ = trust.PeerOf(s)
			_, serverErr = s.Write([]byte("x"))
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if client == nil {
		_, clientErr = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	} else {
		_, clientErr = tls.Client(c, client).Read(make([]byte, 1))
	}
	c.Close()
	<-done
	return seen, serverErr, clientErr
}

func TestHandshake(t *testing.T) {
	ours, theirs := trusttest.New(t), trusttest.New(t)
	worker := trusttest.Identity(trust.RoleWorker, "w1")
	open := func(f trust.Files) *trust.Credentials {
		c, err := trust.Open(trust.Options{Files: f})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// raw shows any certificate, however bad, and checks nothing.
	raw := func(f trust.Files) *tls.Config {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	}
	uris := func(texts ...string) (us []*url.URL) {
		for _, s := range texts {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			us = append(us, u)
		}
		return us
	}
	hour := time.Now().Add(time.Hour)
	server := ours.Open(t, trust.RoleManager, "m1")
	good := open(ours.Issue(t, t.TempDir(), worker, hour))
	old := worker
	old.Domain = "other.example"
	older := raw(ours.Issue(t, t.TempDir(), worker, hour))
	older.MaxVersion = tls.VersionTLS12

	for name, test := range map[string]struct {
		client *tls.Config
		want   trust.Reason // "": accepted
	}{
		"good":              {good.ClientConfig(nil), ""},
		"no certificate":    {&tls.Config{InsecureSkipVerify: true}, trust.NoCertificate},
		"other authority":   {raw(theirs.Issue(t, t.TempDir(), worker, hour)), trust.UnknownAuthority},
		"expired":           {raw(ours.Issue(t, t.TempDir(), worker, time.Now().Add(-time.Minute))), trust.Expired},
		"other domain":      {raw(ours.Issue(t, t.TempDir(), old, hour)), trust.WrongDomain},
		"no identity":       {raw(ours.IssueURIs(t, t.TempDir(), nil, hour)), trust.BadIdentity},
		"two identities":    {raw(ours.IssueURIs(t, t.TempDir(), uris(worker.String(), "spiffe://test.example/qs/manager/default/m1"), hour)), trust.BadIdentity},
		"other identity":    {raw(ours.IssueURIs(t, t.TempDir(), uris("spiffe://test.example/ns/default/sa/web"), hour)), trust.BadIdentity},
		"unknown role":      {raw(ours.IssueURIs(t, t.TempDir(), uris("spiffe://test.example/qs/root/default/w1"), hour)), trust.BadIdentity},
		"plain text":        {nil, trust.NotTLS},
		"TLS 1.2":           {older, trust.Failed},
		"wants the manager": {good.ClientConfig(trust.Want("m1", trust.RoleManager)), ""},
	} {
		t.Run("server/"+name, func(t *testing.T) {
			seen, serverErr, clientErr := meet(t, server.ServerConfig(), test.client)
			if test.want == "" {
				if serverErr != nil || clientErr != nil || seen != worker {
					t.Fatalf("server: %v, client: %v, seen %v", serverErr, clientErr, seen)
				}
				return
			}
			if got := trust.ReasonOf(serverErr); serverErr == nil || got != test.want {
				t.Errorf("server: %v, reason %q; want %q", serverErr, got, test.want)
			}
			if test.client != nil && clientErr == nil {
				t.Error("the client was served")
			}
		})
	}
	t.Run("the refused client learns it", func(t *testing.T) {
		_, _, clientErr := meet(t, theirs.Open(t, trust.RoleManager, "m1").ServerConfig(), raw(ours.Issue(t, t.TempDir(), worker, hour)))
		if got := trust.ReasonOf(clientErr); got != trust.Refused {
			t.Errorf("client: %v, reason %q", clientErr, got)
		}
	})
	for name, test := range map[string]struct {
		server *tls.Config
		check  func(trust.Identity) error
		want   trust.Reason
	}{
		"other authority": {raw(theirs.Issue(t, t.TempDir(), worker, hour)), nil, trust.UnknownAuthority},
		"expired":         {raw(ours.Issue(t, t.TempDir(), worker, time.Now().Add(-time.Minute))), nil, trust.Expired},
		"other name":      {server.ServerConfig(), trust.Want("m2", trust.RoleManager), trust.WrongName},
		"other role":      {server.ServerConfig(), trust.Want("m1", trust.RoleWorker), trust.WrongRole},
		"plain text":      {nil, nil, trust.NotTLS},
	} {
		t.Run("client/"+name, func(t *testing.T) {
			_, _, clientErr := meet(t, test.server, good.ClientConfig(test.check))
			if got := trust.ReasonOf(clientErr); clientErr == nil || got != test.want {
				t.Errorf("client: %v, reason %q; want %q", clientErr, got, test.want)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	a, other := trusttest.New(t), trusttest.New(t)
	id := trusttest.Identity(trust.RoleWorker, "w1")
	for name, test := range map[string]struct {
		spoil func(f *trust.Files) error
		want  string
	}{
		"key readable by all":   {func(f *trust.Files) error { return os.Chmod(f.Key, 0o644) }, "has mode 0644"},
		"key writable by group": {func(f *trust.Files) error { return os.Chmod(f.Key, 0o660) }, "has mode 0660"},
		"no key":                {func(f *trust.Files) error { return os.Remove(f.Key) }, "read key: open"},
		"key of another":        {func(f *trust.Files) error { f.Key = a.Node(t, trust.RoleWorker, "w2").Key; return nil }, "does not match"},
		"authority of another":  {func(f *trust.Files) error { f.CA = other.Node(t, trust.RoleWorker, "w2").CA; return nil }, "unknown authority"},
		"a leaf as authority":   {func(f *trust.Files) error { f.CA = f.Cert; return nil }, "not the certificate of an authority"},
		"a directory":           {func(f *trust.Files) error { f.CA = t.TempDir(); return nil }, "is no regular file"},
		"empty authorities":     {func(f *trust.Files) error { return os.Truncate(f.CA, 0) }, "no certificate"},
		"huge":                  {func(f *trust.Files) error { return os.Truncate(f.CA, 2<<20) }, "longer than"},
		"expired": {func(f *trust.Files) error {
			*f = a.Issue(t, t.TempDir(), id, time.Now().Add(-time.Minute))
			return nil
		}, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			f := a.Issue(t, t.TempDir(), id, time.Now().Add(time.Hour))
			if err := test.spoil(&f); err != nil {
				t.Fatal(err)
			}
			_, err := trust.Open(trust.Options{Files: f})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v; want one with %q", err, test.want)
			}
			key, _ := os.ReadFile(f.Key)
			if block, _ := pem.Decode(key); block != nil && strings.Contains(err.Error(), string(key[30:60])) {
				t.Error("the error holds a part of the key")
			}
		})
	}
}

func TestSignatures(t *testing.T) {
	a := trusttest.New(t)
	c := a.Open(t, trust.RoleWorker, "w1")
	chain, sig, err := c.SignWithChain("record", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, id, err := a.Open(t, trust.RoleManager, "m1").VerifyChain(chain)
	if err != nil || id.Name != "w1" {
		t.Fatalf("%v, %v", id, err)
	}
	if err := trust.VerifySignature(leaf, "record", []byte("hello"), sig); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"other message": trust.VerifySignature(leaf, "record", []byte("hellp"), sig),
		"other purpose": trust.VerifySignature(leaf, "rec", []byte("ord\nhello"), sig),
		"no signature":  trust.VerifySignature(leaf, "record", []byte("hello"), nil),
	} {
		if trust.ReasonOf(err) != trust.BadSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, err = trusttest.New(t).Open(t, trust.RoleManager, "m1").VerifyChain(chain)
	if trust.ReasonOf(err) != trust.UnknownAuthority {
		t.Errorf("another authority's: %v", err)
	}
	if _, _, err := c.VerifyChain(nil); trust.ReasonOf(err) != trust.NoCertificate {
		t.Errorf("empty chain: %v", err)
	}
	if _, _, err := c.VerifyChain([][]byte{[]byte("junk")}); trust.ReasonOf(err) != trust.BadCertificate {
		t.Errorf("junk: %v", err)
	}
}

// TestRotation replaces the files under a connection and a listener.
func TestRotation(t *testing.T) {
	a, dir := trusttest.New(t), t.TempDir()
	id := trusttest.Identity(trust.RoleManager, "m1")
	reg := prometheus.NewRegistry()
	c, err := trust.Open(trust.Options{Files: a.Issue(t, dir, id, time.Now().Add(time.Minute)), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() { defer close(watched); c.Watch(ctx) }()
	defer func() { cancel(); <-watched }()

	server, client := c.ServerConfig(), a.Open(t, trust.RoleWorker, "w1").ClientConfig(nil)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				close(accepted)
				return
			}
			go io.Copy(conn, conn)
			accepted <- conn
		}
	}()
	defer func() {
		ln.Close()
		for conn := range accepted {
			conn.Close()
		}
	}()
	echo := func(conn *tls.Conn) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	dial := func() *tls.Conn {
		t.Helper()
		conn, err := tls.Dial("tcp", ln.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	before := dial()
	defer before.Close()
	echo(before)
	shown := func(conn *tls.Conn) *x509.Certificate { return conn.ConnectionState().PeerCertificates[0] }

	// Somebody else's files are not taken up.
	a.Issue(t, dir, trusttest.Identity(trust.RoleManager, "m2"), time.Now().Add(time.Hour))
	if err := c.Reload(); err == nil || !strings.Contains(err.Error(), "restart to be somebody else") {
		t.Fatalf("reload of another's certificate: %v", err)
	}
	end := time.Now().Add(2 * time.Hour)
	a.Issue(t, dir, id, end)
	deadline := time.Now().Add(20 * time.Second)
	for testutil.ToFloat64(gathered(t, reg, "cert")) != float64(end.Unix()) {
		if time.Now().After(deadline) {
			t.Fatal("the new certificate is not taken up")
		}
		time.Sleep(50 * time.Millisecond)
	}
	echo(before)
	after := dial()
	defer after.Close()
	echo(after)
	if shown(before).Equal(shown(after)) {
		t.Error("a new connection is shown the old certificate")
	}
}

// gathered returns one of the expiry gauges as a gauge of its own.
func gathered(t *testing.T, reg *prometheus.Registry, file string) prometheus.Gauge {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "qs_tls_not_after_timestamp_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == file {
				g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "copy"})
				g.Set(m.GetGauge().GetValue())
				return g
			}
		}
	}
	t.Fatal(errors.New("no expiry metric"))
	return nil
}

// TestTable is the table of docs/security.md in the code's words.
func TestTable(t *testing.T) {
	for _, r := range trust.Roles() {
		if r.May("") || r.May("fly") {
			t.Errorf("%s may do what nobody knows", r)
		}
	}
	if trust.Role("").May(trust.VerbStatus) {
		t.Error("nobody may see the status")
	}
	for verb, want := range map[trust.Verb]string{
		trust.VerbGossip:   "worker manager",
		trust.VerbFetch:    "worker manager",
		trust.VerbRead:     "worker manager client-read client-write",
		trust.VerbWrite:    "manager client-write",
		trust.VerbSnapshot: "manager operator",
		trust.VerbStatus:   "worker manager client-read client-write operator",
	} {
		var got []string
		for _, r := range verb.Who() {
			got = append(got, string(r))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s; want %s", verb, s, want)
		}
	}
}
