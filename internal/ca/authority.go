package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// Lifetimes.
const (
	// DefaultAuthorityTTL is how long an authority lives.
	DefaultAuthorityTTL = 365 * 24 * time.Hour
	// DefaultTTL is how long a certificate lives: short, as what is stolen is of
	// use for so long. A node that runs takes the next one up without a restart.
	DefaultTTL = 7 * 24 * time.Hour
	// Backdate is how much earlier than now certificates begin.
	Backdate = 5 * time.Minute
	// minTTL is the shortest life that makes sense.
	minTTL = time.Minute
)

// The files of an authority and of what it issues.
const (
	caFile      = "ca.pem"
	caKeyFile   = "ca.key"
	trustedFile = "trusted-keys"
	issuedFile  = "issued.jsonl"

	certFile    = "cert.pem"
	keyFile     = "key.pem"
	signingFile = "signing.key"
	envFile     = "env"
)

const (
	publicMode  fs.FileMode = 0o644
	privateMode fs.FileMode = 0o600
)

// Authority is a certificate authority in a directory. Several processes may issue
// from one at a time; the methods of one Authority may be called concurrently.
type Authority struct {
	dir    string
	domain string
	cert   *x509.Certificate
	key    crypto.Signer
}

// Options configure a new authority.
type Options struct {
	TrustDomain string
	TTL         time.Duration // default DefaultAuthorityTTL
}

// RequestError says that what was asked for makes no sense.
type RequestError struct{ text string }

func (e *RequestError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &RequestError{fmt.Sprintf(format, args...)} }

// Init makes an authority in dir, which it makes, too, if need be. There must be
// none yet.
func Init(dir string, o Options) (*Authority, error) {
	if o.TTL == 0 {
		o.TTL = DefaultAuthorityTTL
	}
	if o.TTL < minTTL {
		return nil, wrong("a life of %v is too short: want at least %v", o.TTL, minTTL)
	}
	if err := validDomain(o.TrustDomain); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(durable.OS, dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, name := range []string{caFile, caKeyFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return nil, fmt.Errorf("there is a %s in %s already, and nothing overwrites an authority: name another directory, or move it away", name, dir)
		}
	}
	cert, key, err := newAuthority(o)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// The certificate last: with it, all is there.
	if err := durable.WriteFile(durable.OS, filepath.Join(dir, caKeyFile), keyPEM, privateMode); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(durable.OS, filepath.Join(dir, caFile), encodeCertificate(cert), publicMode); err != nil {
		return nil, err
	}
	return Open(dir)
}

// validDomain refuses a trust domain that no identity or no name constraint can have.
func validDomain(domain string) error {
	if _, err := netip.ParseAddr(domain); err == nil {
		return wrong("trust domain %q is an IP address: want a name, like qs.example", domain)
	}
	probe := trust.Identity{Domain: domain, Role: trust.RoleWorker, Colo: "c", Name: "n"}
	if domain == "" || probe.Validate() != nil {
		return wrong("trust domain %q: want lower-case letters, digits, dots, dashes and underscores, like qs.example", domain)
	}
	return nil
}

// newAuthority returns a certificate that signs itself.
func newAuthority(o Options) (*x509.Certificate, crypto.Signer, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName("qs-peer CA of " + o.TrustDomain)},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: o.TrustDomain}}, // as SPIFFE's X509-SVID, section 2, wants it
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(o.TTL),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		// Host names are not constrained: nodes do not look at them.
		PermittedDNSDomainsCritical: true, // of all name constraints
		PermittedURIDomains:         []string{o.TrustDomain},
	}
	cert, err := sign(template, template, key.Public(), key)
	return cert, key, err
}

// Open opens the authority in dir.
func Open(dir string) (*Authority, error) {
	// Where to is written down for later, and may not depend on where we are now.
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	a := &Authority{dir: dir}
	text, err := os.ReadFile(a.File())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no authority in %s: make one with qs-peer ca init --dir %s", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	if a.cert, err = decodeCertificate(text); err != nil {
		return nil, fmt.Errorf("%s: %w", a.File(), err)
	}
	if a.key, err = readKey(filepath.Join(dir, caKeyFile)); err != nil {
		return nil, err
	}
	if !samePublic(a.cert.PublicKey, a.key) {
		return nil, fmt.Errorf("%s is not the key of the certificate in %s", filepath.Join(dir, caKeyFile), a.File())
	}
	if len(a.cert.URIs) != 1 || !a.cert.IsCA {
		return nil, fmt.Errorf("%s is no authority that qs-peer ca init made", a.File())
	}
	a.domain = a.cert.URIs[0].Host
	return a, nil
}

// Dir returns the authority's directory, as an absolute path.
func (a *Authority) Dir() string { return a.dir }

// File returns the path of the authority's certificate.
func (a *Authority) File() string { return filepath.Join(a.dir, caFile) }

// TrustDomain returns the domain of all identities that it issues.
func (a *Authority) TrustDomain() string { return a.domain }

// Certificate returns the authority's certificate. The caller does not change it.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign makes a certificate, with a random serial number.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// commonName shortens a name to what X.509 has room for; it is for the eye only.
func commonName(name string) string { return name[:min(len(name), 64)] }

func encodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func decodeCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return x509.ParseCertificate(block.Bytes)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// readKey reads a key in PKCS #8 form that others can not read.
func readKey(path string) (crypto.Signer, error) {
	text, err := trust.ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM form", path)
	}
	// What the parser says could quote the key.
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no key in PKCS #8 form", path)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key in %s can not sign", path)
	}
	return key, nil
}

func samePublic(public crypto.PublicKey, key crypto.Signer) bool {
	p, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	return ok && p.Equal(key.Public())
}
