package ca_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/internal/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newAuthority(t testing.TB) *ca.Authority {
	t.Helper()
	a, err := ca.Init(filepath.Join(t.TempDir(), "ca"), ca.Options{TrustDomain: "qs_1.example"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *ca.Authority, r ca.Request) *ca.Issued {
	t.Helper()
	if r.Colo == "" {
		r.Colo = "ams"
	}
	done, err := a.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func readCertificate(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	if block == nil || len(rest) > 0 {
		t.Fatalf("%s: not one certificate", path)
		return nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Every role gets what it needs, and nothing else.
func TestIssue(t *testing.T) {
	a := newAuthority(t)
	issue(t, a, ca.Request{Role: trust.RoleManager, Name: "first"})
	for _, role := range trust.Roles() {
		done := issue(t, a, ca.Request{Role: role, Name: "n-" + string(role)})
		c, err := trust.Open(trust.Options{Files: done.Files})
		if err != nil {
			t.Fatal(err)
		}
		if want := (trust.Identity{Domain: "qs_1.example", Role: role, Colo: "ams", Name: "n-" + string(role)}); c.Identity() != want || done.Identity != want {
			t.Errorf("%s: identity %s", role, c.Identity())
		}
		cert := readCertificate(t, done.Files.Cert)
		now := time.Now()
		if begun := now.Sub(cert.NotBefore); begun < ca.Backdate || begun > ca.Backdate+time.Minute {
			t.Errorf("%s: begun %v ago", role, begun)
		}
		if left := cert.NotAfter.Sub(now); left > ca.DefaultTTL || left < ca.DefaultTTL-time.Minute {
			t.Errorf("%s: %v left", role, left)
		}
		if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("%s: usage %v, of an authority: %v", role, cert.KeyUsage, cert.IsCA)
		}
		if cert.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: serial %v", role, cert.SerialNumber)
		}
		isServer := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		if isServer != role.IsNode() || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
			t.Errorf("%s: usages %v", role, cert.ExtKeyUsage)
		}
		for _, host := range ca.DefaultHosts {
			if err := cert.VerifyHostname(host); (err == nil) != role.IsNode() {
				t.Errorf("%s as %s: %v", role, host, err)
			}
		}
		if got := done.TrustedKeys != ""; got != role.IsNode() {
			t.Errorf("%s: trusted keys in %q", role, done.TrustedKeys)
		}
		if got := done.SigningKey != ""; got != (role == trust.RoleManager) {
			t.Errorf("%s: signing key in %q", role, done.SigningKey)
		}
		if got := done.Env != ""; got == role.IsNode() {
			t.Errorf("%s: environment in %q", role, done.Env)
		}
		wantModes(t, done.Dir, map[string]os.FileMode{"env": 0o644, "key.pem": 0o600, "signing.key": 0o600, "cert.pem": 0o644, "ca.pem": 0o644, "trusted-keys": 0o644})
	}
	wantModes(t, a.Dir(), map[string]os.FileMode{"ca.key": 0o600, "ca.pem": 0o644, "issued.jsonl": 0o600, "trusted-keys": 0o644})
	if info, err := os.Stat(a.Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the authority's directory has mode %v (%v)", info.Mode(), err)
	}
}

// wantModes checks the files that are there; others than these may not be.
func wantModes(t *testing.T, dir string, want map[string]os.FileMode) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		info, err := e.Info()
		if mode, known := want[e.Name()]; err != nil || !known || info.Mode().Perm() != mode {
			t.Errorf("%s in %s has mode %v (%v)", e.Name(), dir, info.Mode(), err)
		}
	}
}

// An authority vouches for its domain and for no further authority, whatever somebody
// signs with its key.
func TestConstraints(t *testing.T) {
	a := newAuthority(t)
	block, _ := pem.Decode(read(t, filepath.Join(a.Dir(), "ca.key")))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(uri string) *x509.Certificate {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		return &x509.Certificate{NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	}
	sign := func(c, parent *x509.Certificate) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.(crypto.Signer).Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	further := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "further"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}, a.Certificate())
	for _, c := range []struct {
		what   string
		cert   *x509.Certificate
		reason x509.InvalidReason
	}{
		{"its own domain", sign(leaf("spiffe://qs_1.example/qs/worker/c/n"), a.Certificate()), -1},
		{"another domain", sign(leaf("spiffe://qs.example/qs/worker/c/n"), a.Certificate()), x509.CANotAuthorizedForThisName},
		{"another authority", sign(leaf("spiffe://qs_1.example/qs/worker/c/n"), further), x509.TooManyIntermediates},
	} {
		o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		o.Roots.AddCert(a.Certificate())
		o.Intermediates.AddCert(further)
		_, err := c.cert.Verify(o)
		var invalid x509.CertificateInvalidError
		if c.reason < 0 {
			if err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		} else if !errors.As(err, &invalid) || invalid.Reason != c.reason {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// Whoever comes later is trusted by those who were there before, and whoever was
// taken out is taken out everywhere.
func TestTrustedKeysAreTheSameEverywhere(t *testing.T) {
	a := newAuthority(t)
	elsewhere := t.TempDir()
	w1 := issue(t, a, ca.Request{Role: trust.RoleWorker, Name: "w1", Out: elsewhere})
	if w1.TrustedKeys != "" {
		t.Errorf("trusted keys before there are any: %s", w1.TrustedKeys)
	}
	me := issue(t, a, ca.Request{Role: trust.RoleClientRead, Name: "me"})
	m1 := issue(t, a, ca.Request{Role: trust.RoleManager, Name: "m1"})
	if !slices.Equal(m1.Updated, []string{elsewhere}) {
		t.Errorf("updated %v", m1.Updated)
	}
	m2 := issue(t, a, ca.Request{Role: trust.RoleManager, Name: "m2"})
	if !slices.Equal(m2.Updated, sorted(elsewhere, m1.Dir)) {
		t.Errorf("updated %v", m2.Updated)
	}
	for _, dir := range []string{elsewhere, m1.Dir, m2.Dir} {
		wantTrusted(t, dir, m1.SigningKey, true)
		wantTrusted(t, dir, m2.SigningKey, true)
	}
	if _, err := os.Stat(filepath.Join(me.Dir, "trusted-keys")); err == nil {
		t.Error("a client got trusted keys")
	}

	// m1's key is taken out, and one directory is gone: others hear of it at the next issue.
	lines := strings.SplitAfter(string(read(t, filepath.Join(a.Dir(), "trusted-keys"))), "\n")
	write(t, filepath.Join(a.Dir(), "trusted-keys"), []byte(lines[1]))
	if err := os.RemoveAll(m2.Dir); err != nil {
		t.Fatal(err)
	}
	w2 := issue(t, a, ca.Request{Role: trust.RoleWorker, Name: "w2"})
	for _, dir := range []string{elsewhere, w2.Dir} {
		wantTrusted(t, dir, m1.SigningKey, false)
	}
	if _, err := os.Stat(m2.Dir); err == nil {
		t.Error("a directory that was removed is back")
	}
	// And that manager is told so.
	if _, err := a.Issue(ca.Request{Role: trust.RoleManager, Name: "m1", Colo: "ams"}); err == nil || !strings.Contains(err.Error(), "does not list") {
		t.Errorf("a manager whose key is not trusted: %v", err)
	}
	if err := os.Remove(m1.SigningKey); err != nil {
		t.Fatal(err)
	}
	issue(t, a, ca.Request{Role: trust.RoleManager, Name: "m1"})
	wantTrusted(t, elsewhere, m1.SigningKey, true)
}

func wantTrusted(t *testing.T, dir, signingKey string, want bool) {
	t.Helper()
	s, err := signing.LoadSigner(signingKey)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := signing.LoadTrusted(filepath.Join(dir, "trusted-keys"))
	if err != nil {
		t.Fatal(err)
	}
	if trusted.Knows(s) != want {
		t.Errorf("%s in %s: trusted is %v, want %v", s, dir, !want, want)
	}
}

// Issuing again renews under the same key; a new key, and another identity, are only
// for those who ask for that.
func TestRenewal(t *testing.T) {
	a := newAuthority(t)
	r := ca.Request{Role: trust.RoleManager, Name: "m1"}
	first := issue(t, a, r)
	key, signingKey := read(t, first.Files.Key), read(t, first.SigningKey)
	again := issue(t, a, r)
	if again.Serial == first.Serial || !again.KeptKey || first.KeptKey {
		t.Errorf("first %+v, then %+v", first, again)
	}
	if string(read(t, first.Files.Key)) != string(key) || string(read(t, first.SigningKey)) != string(signingKey) {
		t.Error("a renewal changed a key")
	}
	open(t, again)

	other := ca.Request{Role: trust.RoleManager, Name: "m2", Colo: "ams", Out: first.Dir}
	if _, err := a.Issue(other); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("somebody else's directory: %v", err)
	}
	if got := open(t, again).Identity().Name; got != "m1" {
		t.Errorf("the refused certificate is there: %s", got)
	}
	r.NewKey = true
	forced := issue(t, a, r)
	if forced.KeptKey || string(read(t, first.Files.Key)) == string(key) || string(read(t, first.SigningKey)) != string(signingKey) {
		t.Errorf("a new key: %+v", forced)
	}
	open(t, forced)
	other.NewKey = true
	if done := issue(t, a, other); open(t, done).Identity().Name != "m2" {
		t.Error("a directory could not be given to somebody else")
	} else if s, err := signing.LoadSigner(done.SigningKey); err != nil || s.Name() != "m2" {
		t.Errorf("m2 signs as %v (%v)", s, err)
	}

	// A key that somebody made elsewhere is certified as it is.
	own := t.TempDir()
	write(t, filepath.Join(own, "key.pem"), read(t, forced.Files.Key))
	if done := issue(t, a, ca.Request{Role: trust.RoleWorker, Name: "w", Out: own}); !done.KeptKey {
		t.Error("it was replaced")
	} else {
		open(t, done)
	}
	// But not one that others can read.
	if err := os.Chmod(filepath.Join(own, "key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Issue(ca.Request{Role: trust.RoleWorker, Name: "w", Colo: "ams", Out: own}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

func open(t *testing.T, done *ca.Issued) *trust.Credentials {
	t.Helper()
	c, err := trust.Open(trust.Options{Files: done.Files})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A fleet changes its authority by way of a ca.pem with both.
func TestChangeOfAuthority(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	r := ca.Request{Role: trust.RoleWorker, Name: "w1", Colo: "ams", Out: t.TempDir()}
	done := issue(t, old, r)
	if _, err := next.Issue(r); err == nil || !strings.Contains(err.Error(), "of another authority") {
		t.Errorf("another authority: %v", err)
	}
	both := append(read(t, old.File()), read(t, next.File())...)
	write(t, done.Files.CA, both)
	issue(t, next, r)
	if string(read(t, done.Files.CA)) != string(both) {
		t.Error("the old authority was taken away from others")
	}
	if err := readCertificate(t, done.Files.Cert).CheckSignatureFrom(next.Certificate()); err != nil {
		t.Error(err)
	}
	open(t, done)
	r.NewKey = true
	issue(t, next, r) // keeps both, too
	if string(read(t, done.Files.CA)) != string(both) {
		t.Error("a new key took the old authority away")
	}
}

// Whoever reads while a pair is replaced finds a pair that matches, or does at the next look.
func TestReplacedUnderReaders(t *testing.T) {
	a := newAuthority(t)
	r := ca.Request{Role: trust.RoleWorker, Name: "w1", NewKey: true}
	done := issue(t, a, r)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	var reads, mismatches int
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			reads++
			if _, err := trust.Open(trust.Options{Files: done.Files}); err != nil {
				mismatches++
			}
		}
	})
	for range 50 {
		issue(t, a, r)
	}
	close(stop)
	reader.Wait()
	t.Logf("%d reads, %d of them while the two renames were done", reads, mismatches)
	if reads < 50 || mismatches > reads/2 {
		t.Error("files that do not match are there for long")
	}
	open(t, done)
}

// Several processes issue from one authority at a time.
func TestConcurrentIssues(t *testing.T) {
	a := newAuthority(t)
	const n = 8
	var all sync.WaitGroup
	dirs := make([]string, n)
	for i := range n {
		all.Go(func() {
			b, err := ca.Open(a.Dir())
			if err != nil {
				t.Error(err)
				return
			}
			done, err := b.Issue(ca.Request{Role: trust.RoleManager, Colo: "ams", Name: "m" + string(rune('a'+i))})
			if err != nil {
				t.Error(err)
				return
			}
			dirs[i] = done.Dir
		})
	}
	all.Wait()
	for _, dir := range dirs {
		for _, other := range dirs {
			wantTrusted(t, dir, filepath.Join(other, "signing.key"), true)
		}
	}
}

// What makes no sense is refused, and nothing is left of it.
func TestRefusedRequests(t *testing.T) {
	a := newAuthority(t)
	good := ca.Request{Role: trust.RoleWorker, Colo: "ams", Name: "w1"}
	for _, c := range []struct {
		says   string
		change func(*ca.Request)
	}{
		{"path", func(r *ca.Request) { r.Role = "" }},
		{`role "root" is none of`, func(r *ca.Request) { r.Role = "root" }},
		{"path", func(r *ca.Request) { r.Name = "" }},
		{"path", func(r *ca.Request) { r.Name = "../../etc" }},
		{"path", func(r *ca.Request) { r.Name = ".." }},
		{"path", func(r *ca.Request) { r.Colo = "a b" }},
		{"at most", func(r *ca.Request) { r.Name = strings.Repeat("x", 129) }},
		{"too short", func(r *ca.Request) { r.TTL = time.Second }},
		{"too short", func(r *ca.Request) { r.TTL = -time.Hour }},
		{"longer than the authority's", func(r *ca.Request) { r.TTL = 2 * ca.DefaultAuthorityTTL }},
		{"without a port", func(r *ca.Request) { r.Hosts = []string{"localhost:80"} }},
		{"without a port", func(r *ca.Request) { r.Hosts = []string{""} }},
		{"without a port", func(r *ca.Request) { r.Hosts = []string{"fe80::1%eth0"} }},
		{"host names are for nodes", func(r *ca.Request) { r.Role, r.Hosts = trust.RoleOperator, []string{"localhost"} }},
		{"the authority's own directory", func(r *ca.Request) { r.Out = a.Dir() }},
	} {
		r := good
		c.change(&r)
		var wrong *ca.RequestError
		if _, err := a.Issue(r); !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v; want an error with %q", r, err, c.says)
		}
		if r.Name == "" || strings.Contains(r.Name, "..") {
			continue
		}
		if _, err := os.Stat(filepath.Join(a.Dir(), r.Name, "cert.pem")); err == nil {
			t.Errorf("%+v left a certificate", r)
		}
	}
	if _, err := os.Stat(filepath.Join(a.Dir(), "issued.jsonl")); err == nil {
		t.Error("what was refused is in the register")
	}
	issue(t, a, good)
}

func TestRefusedAuthorities(t *testing.T) {
	for _, domain := range []string{"", "Example.org", "a b", "10.0.0.1", "::1", "a/b", "a:1"} {
		dir := filepath.Join(t.TempDir(), "ca")
		var wrong *ca.RequestError
		if _, err := ca.Init(dir, ca.Options{TrustDomain: domain}); !errors.As(err, &wrong) {
			t.Errorf("trust domain %q: %v", domain, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("trust domain %q left a directory", domain)
		}
	}
	if _, err := ca.Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "qs-peer ca init") {
		t.Errorf("a directory without an authority: %v", err)
	}

	a := newAuthority(t)
	file, key := a.File(), filepath.Join(a.Dir(), "ca.key")
	before := [2]string{string(read(t, file)), string(read(t, key))}
	if _, err := ca.Init(a.Dir(), ca.Options{TrustDomain: "qs.example"}); err == nil {
		t.Error("an authority was overwritten")
	}
	if after := [2]string{string(read(t, file)), string(read(t, key))}; after != before {
		t.Error("a refused init changed it")
	}
	secret := strings.Split(before[1], "\n")[1]
	for _, c := range []struct {
		says  string
		spoil func()
	}{
		{"chmod 600", func() { os.Chmod(key, 0o644) }},
		{"no key in PKCS #8 form", func() { write(t, key, []byte(strings.Replace(before[1], secret, secret[:40]+secret[44:], 1))) }},
		{"no key in PEM form", func() { write(t, key, []byte(secret)) }},
		{"is not the key of", func() { write(t, key, read(t, filepath.Join(newAuthority(t).Dir(), "ca.key"))) }},
		{"no certificate", func() { write(t, file, []byte(before[1])) }},
		{"there is no authority", func() { os.Remove(file) }},
	} {
		write(t, file, []byte(before[0]))
		write(t, key, []byte(before[1]))
		c.spoil()
		_, err := ca.Open(a.Dir())
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v; want an error with %q", err, c.says)
		} else if strings.Contains(err.Error(), secret[:20]) {
			t.Errorf("a key is in an error: %v", err)
		}
		if _, err := os.Stat(file); err != nil {
			// Half an authority is not overwritten either: who knows whose key that is.
			if _, err := ca.Init(a.Dir(), ca.Options{TrustDomain: "qs.example"}); err == nil || !strings.Contains(err.Error(), "ca.key") {
				t.Errorf("init beside a key: %v", err)
			}
		}
	}
}

// No certificate outlives its authority, and none is issued after that.
func TestEndOfAnAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := ca.Init(filepath.Join(t.TempDir(), "ca"), ca.Options{TrustDomain: "qs.example", TTL: 48 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		r := ca.Request{Role: trust.RoleWorker, Name: "w1", Colo: "ams"}
		time.Sleep(24 * time.Hour)
		if done := issue(t, a, r); !done.NotAfter.Equal(a.Certificate().NotAfter) {
			t.Errorf("a certificate until %v, the authority until %v", done.NotAfter, a.Certificate().NotAfter)
		}
		time.Sleep(24 * time.Hour)
		if _, err := a.Issue(r); err == nil || !strings.Contains(err.Error(), "ended on 2000-01-03") {
			t.Errorf("of an authority that is over: %v", err)
		}
	})
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func sorted(s ...string) []string { slices.Sort(s); return s }
