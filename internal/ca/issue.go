package ca

import (
	"crypto"
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
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// DefaultHosts are the host names of a node's certificate, for clients like curl
// that want one. Nodes look at identities only.
var DefaultHosts = []string{"localhost", "127.0.0.1", "::1"}

// Request asks for a certificate.
type Request struct {
	Role       trust.Role
	Colo, Name string
	Hosts      []string      // DNS names and IP addresses of a node; nil: DefaultHosts
	TTL        time.Duration // 0: DefaultTTL, or as long as the authority lives
	Out        string        // directory for the files; "": one of that name in the authority's
	// NewKey makes a new key although one is there, and allows another identity than
	// the one that Out is of.
	NewKey bool
}

// Issued is what Issue wrote.
type Issued struct {
	Identity            trust.Identity
	Dir                 string // an absolute path
	Files               trust.Files
	TrustedKeys         string // path; nodes only, and "" as long as no manager has a signing key
	SigningKey          string // path; managers only
	Env                 string // path; clients only
	Hosts               []string
	Serial              string // hexadecimal
	NotBefore, NotAfter time.Time
	KeptKey             bool // the key was there before
	// Further directories whose trusted-keys were brought up to date, and where that
	// failed.
	Updated, Stale []string
}

// Issue writes a certificate and what belongs to it into a directory.
func (a *Authority) Issue(r Request) (*Issued, error) {
	id := trust.Identity{Domain: a.domain, Role: r.Role, Colo: r.Colo, Name: r.Name}
	if err := id.Validate(); err != nil {
		return nil, wrong("%v", err)
	}
	if r.Hosts != nil && !id.Role.IsNode() {
		return nil, wrong("host names are for nodes, and a %s is none", id.Role)
	}
	if r.Out == "" {
		r.Out = filepath.Join(a.dir, r.Name)
	}
	out, err := filepath.Abs(r.Out)
	if err != nil {
		return nil, err
	}
	if out == a.dir {
		return nil, wrong("%s is the authority's own directory: give each certificate another", out)
	}
	unlock, err := lock(a.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := durable.MkdirAll(durable.OS, out, 0o755); err != nil {
		return nil, err
	}
	h := holder{dir: out, Files: trust.Files{
		CA: filepath.Join(out, caFile), Cert: filepath.Join(out, certFile), Key: filepath.Join(out, keyFile)}}
	key, err := h.key(a, id, r.NewKey)
	if err != nil {
		return nil, err
	}
	kept := key != nil
	if !kept {
		if key, err = newKey(); err != nil {
			return nil, err
		}
	}
	cert, err := a.certify(id, r, key.Public())
	if err != nil {
		return nil, err
	}
	done := &Issued{
		Identity: id, Dir: out, Files: h.Files, Serial: cert.SerialNumber.Text(16),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, KeptKey: kept, Hosts: hostsOf(cert),
	}
	var files staged
	defer files.discard()
	if held, err := h.holdsCA(a.cert); err != nil {
		return nil, err
	} else if !held {
		if err := files.add(h.CA, encodeCertificate(a.cert), publicMode); err != nil {
			return nil, err
		}
	}
	if !kept {
		text, err := encodeKey(key)
		if err != nil {
			return nil, err
		}
		if err := files.add(h.Key, text, privateMode); err != nil {
			return nil, err
		}
	}
	if err := files.add(h.Cert, encodeCertificate(cert), publicMode); err != nil {
		return nil, err
	}
	if id.Role == trust.RoleManager {
		done.SigningKey = filepath.Join(out, signingFile)
		if err := a.signingKey(&files, done.SigningKey, id.Name); err != nil {
			return nil, err
		}
	}
	if !id.Role.IsNode() {
		done.Env = filepath.Join(out, envFile)
		if err := files.add(done.Env, environment(h.Files), publicMode); err != nil {
			return nil, err
		}
	}
	if err := a.register(&files, cert, id, out); err != nil {
		return nil, err
	}
	if err := files.commit(); err != nil {
		return nil, err
	}
	if done.Updated, done.Stale, err = a.spreadTrusted(); err != nil {
		return nil, err
	}
	done.Updated = slices.DeleteFunc(done.Updated, func(dir string) bool { return dir == out })
	if trusted := filepath.Join(out, trustedFile); id.Role.IsNode() {
		if _, err := os.Stat(trusted); err == nil {
			done.TrustedKeys = trusted
		}
	}
	return done, nil
}

// certify makes the certificate of an identity.
func (a *Authority) certify(id trust.Identity, r Request, public crypto.PublicKey) (*x509.Certificate, error) {
	now := time.Now()
	left := a.cert.NotAfter.Sub(now)
	switch {
	case left < minTTL:
		return nil, fmt.Errorf("the authority in %s ended on %s: make a new one in another directory (docs/security.md tells how to change authorities)",
			a.dir, a.cert.NotAfter.UTC().Format(time.DateTime))
	case r.TTL == 0:
		r.TTL = min(DefaultTTL, left)
	case r.TTL < minTTL:
		return nil, wrong("a life of %v is too short: want at least %v", r.TTL, minTTL)
	case r.TTL > left:
		return nil, wrong("a life of %v is longer than the authority's, which ends in %v", r.TTL, left.Truncate(time.Second))
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName(id.Name)},
		URIs:        []*url.URL{uri},
		NotBefore:   now.Add(-Backdate),
		NotAfter:    now.Add(r.TTL),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if id.Role.IsNode() {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		if r.Hosts == nil {
			r.Hosts = DefaultHosts
		}
		for _, h := range r.Hosts {
			if err := addHost(template, h); err != nil {
				return nil, err
			}
		}
	}
	cert, err := sign(template, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	// What would be refused everywhere is not handed out.
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: template.ExtKeyUsage}); err != nil {
		return nil, fmt.Errorf("the authority in %s can not vouch for %s: %w", a.dir, id, err)
	}
	return cert, nil
}

func addHost(template *x509.Certificate, host string) error {
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
		return nil
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_' || r == '*')
	}) {
		return wrong("host %q: want a DNS name or an IP address, without a port", host)
	}
	template.DNSNames = append(template.DNSNames, host)
	return nil
}

// environment returns what a shell reads so that the commands find a client's files.
func environment(f trust.Files) []byte {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	return fmt.Appendf(nil, "export QS_TLS_CA=%s QS_TLS_CERT=%s QS_TLS_KEY=%s\n", quote(f.CA), quote(f.Cert), quote(f.Key))
}

func hostsOf(c *x509.Certificate) []string {
	hosts := append([]string{}, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// holder is a directory that has, or will have, a certificate.
type holder struct {
	dir string
	trust.Files
}

// key returns the key that is there if it is to be certified again, or nil.
func (h *holder) key(a *Authority, id trust.Identity, renew bool) (crypto.Signer, error) {
	if renew {
		return nil, nil
	}
	if _, err := os.Stat(h.Key); errors.Is(err, fs.ErrNotExist) {
		return nil, h.mine(id)
	} else if err != nil {
		return nil, err
	}
	if held, err := h.holdsCA(a.cert); err != nil {
		return nil, err
	} else if _, err := os.Stat(h.CA); err == nil && !held {
		return nil, fmt.Errorf("%s is of another authority, whose certificates the others may still have: put both into it, or give --force or another --out", h.CA)
	}
	if err := h.mine(id); err != nil {
		return nil, err
	}
	return readKey(h.Key)
}

// mine refuses a directory with somebody else's certificate.
func (h *holder) mine(id trust.Identity) error {
	text, err := os.ReadFile(h.Cert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	there := "what is no certificate"
	if c, err := decodeCertificate(text); err == nil {
		there = "a certificate without an identity"
		if other, err := trust.FromCertificate(c); err == nil {
			if other == id {
				return nil
			}
			there = "the certificate of " + other.String()
		}
	}
	return fmt.Errorf("%s holds %s, not of %s: give another --out, or --force to replace it and its key", h.Cert, there, id)
}

// holdsCA reports whether the authorities in the directory include ca. They may be
// several, while a fleet changes from one to another.
func (h *holder) holdsCA(ca *x509.Certificate) (bool, error) {
	text, err := os.ReadFile(h.CA)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return false, nil
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && c.Equal(ca) {
			return true, nil
		}
	}
}

// signingKey makes a manager's signing key unless it has one, and has its public half
// trusted.
func (a *Authority) signingKey(files *staged, path, name string) error {
	if _, err := os.Stat(path); err == nil {
		s, err := signing.LoadSigner(path)
		if err != nil {
			return err
		}
		if s.Name() == name {
			if t, err := signing.LoadTrusted(a.trusted()); err != nil || !t.Knows(s) {
				return fmt.Errorf("%s holds the key %s, which %s does not list: put its public half there, or move it away for a new one", path, s, a.trusted())
			}
			return nil
		} // somebody else's, who was here before
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	private, public, err := signing.GenerateKey(name)
	if err != nil {
		return err
	}
	if err := files.add(path, []byte(private+"\n"), privateMode); err != nil {
		return err
	}
	text, err := os.ReadFile(a.trusted())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if n := len(text); n > 0 && text[n-1] != '\n' {
		text = append(text, '\n')
	}
	text = fmt.Appendf(text, "%s  # since %s\n", public, time.Now().UTC().Format(time.DateOnly))
	return files.add(a.trusted(), text, publicMode)
}

func (a *Authority) trusted() string { return filepath.Join(a.dir, trustedFile) }
