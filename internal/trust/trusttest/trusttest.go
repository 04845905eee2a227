// Package trusttest makes authorities and certificates for tests.
package trusttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// Domain is the trust domain of what Authority.Node issues.
const Domain = "test.example"

// Authority issues certificates.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// New returns a new authority.
func New(t testing.TB) *Authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{key: key, cert: cert}
}

// Node issues for a role and a name, in Domain and colo "default".
func (a *Authority) Node(t testing.TB, role trust.Role, name string) trust.Files {
	t.Helper()
	return a.Issue(t, t.TempDir(), Identity(role, name), time.Now().Add(time.Hour))
}

// Identity returns the identity that Node issues for.
func Identity(role trust.Role, name string) trust.Identity {
	return trust.Identity{Domain: Domain, Role: role, Colo: "default", Name: name}
}

// Issue writes a certificate of id, which ends at notAfter and began two hours
// before that or now, whichever is earlier, with its key and the authority's
// certificate into dir: ca.pem, cert.pem and key.pem, in place of what is there.
func (a *Authority) Issue(t testing.TB, dir string, id trust.Identity, notAfter time.Time) trust.Files {
	t.Helper()
	uri, err := url.Parse(id.String())
	if err != nil {
		t.Fatal(err)
	}
	return a.IssueURIs(t, dir, []*url.URL{uri}, notAfter)
}

// IssueURIs is Issue for any URI names.
func (a *Authority) IssueURIs(t testing.TB, dir string, uris []*url.URL, notAfter time.Time) trust.Files {
	t.Helper()
	key := newKey(t)
	begin := notAfter.Add(-2 * time.Hour)
	if now := time.Now(); begin.After(now) {
		begin = now
	}
	template := &x509.Certificate{
		SerialNumber: serial(t), NotBefore: begin, NotAfter: notAfter, URIs: uris,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := trust.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	write(t, f.CA, "CERTIFICATE", a.cert.Raw)
	write(t, f.Cert, "CERTIFICATE", der)
	write(t, f.Key, "PRIVATE KEY", keyDER)
	return f
}

// Open returns the credentials that Node issues.
func (a *Authority) Open(t testing.TB, role trust.Role, name string) *trust.Credentials {
	t.Helper()
	c, err := trust.Open(trust.Options{Files: a.Node(t, role, name)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	// In one step, so that nobody reads half a file.
	part := path + ".part"
	if err := os.WriteFile(part, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(part, path); err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
