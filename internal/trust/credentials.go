package trust

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Files are paths of PEM files.
type Files struct {
	CA   string // the authorities' certificates
	Cert string // the own certificate, then those between it and an authority
	Key  string // its key: PKCS #8, EC or RSA, not encrypted
}

// Options configure Credentials. Files are required.
type Options struct {
	Files Files
	// Logger is told of reloads and of the certificate's end. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_tls_* metrics. Default: none.
	Registerer prometheus.Registerer
}

// Credentials are how a node shows who it is and checks who others are. Its methods
// may be called concurrently.
type Credentials struct {
	o       Options
	id      Identity // for good
	now     atomic.Pointer[material]
	metrics *metrics

	mu   sync.Mutex
	seen stamp // the files when they were read; guarded by mu
}

// material is what the files hold at one time.
type material struct {
	cert  tls.Certificate
	leaf  *x509.Certificate
	roots *x509.CertPool
	// authorities' soonest end, for the metric
	rootsEnd time.Time
}

// Open reads the files and checks that they belong together.
func Open(o Options) (*Credentials, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Credentials{o: o, seen: o.Files.stamp()}
	m, id, err := o.Files.load()
	if err != nil {
		return nil, err
	}
	c.id = id
	c.now.Store(m)
	if c.metrics, err = newMetrics(o.Registerer, c); err != nil {
		return nil, err
	}
	return c, nil
}

// load reads what the files hold.
func (f Files) load() (*material, Identity, error) {
	m := &material{}
	fail := func(err error) (*material, Identity, error) { return nil, Identity{}, err }
	ca, err := readFile(f.CA, nil)
	if err != nil {
		return fail(fmt.Errorf("read authorities: %w", err))
	}
	roots, err := parseCertificates(ca)
	if err != nil {
		return fail(fmt.Errorf("authorities in %s: %w", f.CA, err))
	}
	m.roots = x509.NewCertPool()
	for _, r := range roots {
		if !r.IsCA {
			return fail(fmt.Errorf("authorities in %s: %q is not the certificate of an authority", f.CA, r.Subject))
		}
		m.roots.AddCert(r)
		if m.rootsEnd.IsZero() || r.NotAfter.Before(m.rootsEnd) {
			m.rootsEnd = r.NotAfter
		}
	}
	cert, err := readFile(f.Cert, nil)
	if err != nil {
		return fail(fmt.Errorf("read certificate: %w", err))
	}
	key, err := ReadPrivate(f.Key)
	if err != nil {
		return fail(fmt.Errorf("read key: %w", err))
	}
	if m.cert, err = tls.X509KeyPair(cert, key); err != nil {
		return fail(fmt.Errorf("certificate %s and key %s: %w", f.Cert, f.Key, err))
	}
	m.leaf = m.cert.Leaf
	id, err := FromCertificate(m.leaf)
	if err != nil {
		return fail(fmt.Errorf("certificate %s: %w", f.Cert, err))
	}
	if _, _, err := m.verify(m.cert.Certificate, id.Domain, x509.ExtKeyUsageAny); err != nil {
		return fail(fmt.Errorf("certificate %s, by the authorities in %s: %w", f.Cert, f.CA, err))
	}
	return m, id, nil
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM form there")
	}
	return certs, nil
}

// maxChain bounds the certificates that somebody shows.
const maxChain = 8

// verify checks a chain of certificates against the authorities and the clock.
func (m *material) verify(chain [][]byte, domain string, usage x509.ExtKeyUsage) (*x509.Certificate, Identity, error) {
	if len(chain) == 0 {
		return nil, Identity{}, refuse(NoCertificate, errors.New("no certificate was shown"))
	}
	if len(chain) > maxChain {
		return nil, Identity{}, refuse(BadCertificate, fmt.Errorf("%d certificates were shown; at most %d are allowed", len(chain), maxChain))
	}
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, Identity{}, refuse(BadCertificate, err)
		}
	}
	id, err := m.verifyParsed(certs, domain, usage)
	return certs[0], id, err
}

func (m *material) verifyParsed(certs []*x509.Certificate, domain string, usage x509.ExtKeyUsage) (Identity, error) {
	o := x509.VerifyOptions{Roots: m.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range certs[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := certs[0].Verify(o); err != nil {
		return Identity{}, refuse(verifyReason(err), err)
	}
	id, err := FromCertificate(certs[0])
	if err != nil {
		return Identity{}, err
	}
	if id.Domain != domain {
		return Identity{}, refuse(WrongDomain, fmt.Errorf("%s is of trust domain %s; this is %s", id.Name, id.Domain, domain))
	}
	return id, nil
}

// Identity returns the own identity. It does not change.
func (c *Credentials) Identity() Identity { return c.id }

// ServerConfig returns the configuration of a listener. Whoever connects shows a
// certificate of the same trust domain.
func (c *Credentials) ServerConfig() *tls.Config {
	cfg := c.config(x509.ExtKeyUsageClientAuth, nil)
	cfg.ClientAuth = tls.RequireAnyClientCert // which config verifies
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.now.Load().cert, nil }
	return cfg
}

// ClientConfig returns the configuration of one that connects. check, if not nil,
// says whether the identity at the other end is the wanted one; its error ends the
// handshake. That this side is content does not mean that the other is: that shows
// when something is read.
func (c *Credentials) ClientConfig(check func(Identity) error) *tls.Config {
	cfg := c.config(x509.ExtKeyUsageServerAuth, check)
	cfg.InsecureSkipVerify = true // of host names: config verifies the chain and the identity
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.now.Load().cert, nil }
	return cfg
}

func (c *Credentials) config(usage x509.ExtKeyUsage, check func(Identity) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // a resumed session would not be verified anew
		// Transfers are long: full records from the beginning.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) > maxChain {
				return refuse(BadCertificate, fmt.Errorf("%d certificates were shown; at most %d are allowed", len(s.PeerCertificates), maxChain))
			}
			id, err := c.now.Load().verifyParsed(s.PeerCertificates, c.id.Domain, usage)
			if err != nil || check == nil {
				return err
			}
			return check(id)
		},
	}
}

// Chain returns the own certificate and those between it and an authority, in DER.
// The caller does not change them.
func (c *Credentials) Chain() [][]byte { return c.now.Load().cert.Certificate }

// VerifyChain checks certificates, leaf first, as those of a connection are checked,
// at this moment and for any use. Errors are *RefusedError.
func (c *Credentials) VerifyChain(chain [][]byte) (*x509.Certificate, Identity, error) {
	return c.now.Load().verify(chain, c.id.Domain, x509.ExtKeyUsageAny)
}

// Sign signs a message by the certificate's key. A signature is good for one purpose,
// which is a word.
func (c *Credentials) Sign(purpose string, message []byte) ([]byte, error) {
	_, sig, err := c.SignWithChain(purpose, message)
	return sig, err
}

// SignWithChain signs, and returns the chain of the key that did.
func (c *Credentials) SignWithChain(purpose string, message []byte) (chain [][]byte, sig []byte, err error) {
	m := c.now.Load()
	key, ok := m.cert.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, errors.New("the certificate's key can not sign")
	}
	signed, options := signedBytes(purpose, message), crypto.SignerOpts(crypto.Hash(0))
	if algorithm := signatureAlgorithm(m.leaf); algorithm != x509.PureEd25519 {
		h := crypto.SHA256.New()
		h.Write(signed)
		signed, options = h.Sum(nil), crypto.SHA256
		if algorithm == x509.SHA256WithRSAPSS {
			options = pssOptions
		}
	}
	sig, err = key.Sign(rand.Reader, signed, options)
	return m.cert.Certificate, sig, err
}

// VerifySignature checks what Credentials.Sign made. An error is a *RefusedError.
func VerifySignature(leaf *x509.Certificate, purpose string, message, sig []byte) error {
	if err := leaf.CheckSignature(signatureAlgorithm(leaf), signedBytes(purpose, message), sig); err != nil {
		return refuse(BadSignature, err)
	}
	return nil
}

// signedBytes keeps signatures of one purpose from serving another, TLS's included.
func signedBytes(purpose string, message []byte) []byte {
	return bytes.Join([][]byte{[]byte("qs-peer signature v1"), []byte(purpose), message}, []byte("\n"))
}
