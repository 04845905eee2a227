package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pathRoot is the first segment of every identity's path.
const pathRoot = "qs"

// Identity is who somebody is, as the certificate says.
type Identity struct {
	Domain     string // the trust domain
	Role       Role
	Colo, Name string
}

// String returns the SPIFFE ID.
func (id Identity) String() string {
	return "spiffe://" + id.Domain + "/" + strings.Join([]string{pathRoot, string(id.Role), id.Colo, id.Name}, "/")
}

// IsZero reports whether id is nobody.
func (id Identity) IsZero() bool { return id == Identity{} }

// Validate returns an error if id has no SPIFFE ID. A domain is made of lower-case
// letters, digits, dots, dashes and underscores, at most 255 bytes; colo and name may
// have capitals too, and are at most 64 and 128 bytes long.
func (id Identity) Validate() error {
	_, err := ParseIdentity(id.String())
	return err
}

// Limits in bytes, as gossip has them.
const (
	maxColo = 64
	maxName = 128
)

// ParseIdentity is the inverse of Identity.String.
func ParseIdentity(uri string) (Identity, error) {
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return Identity{}, fmt.Errorf("identity %q: %w", clip(uri), err)
	}
	return fromSPIFFE(id)
}

func fromSPIFFE(sid spiffeid.ID) (Identity, error) {
	wrong := func(format string, args ...any) (Identity, error) {
		return Identity{}, fmt.Errorf("identity %q: "+format, append([]any{clip(sid.String())}, args...)...)
	}
	parts := strings.Split(sid.Path(), "/") // it begins with a slash
	if len(parts) != 5 || parts[1] != pathRoot {
		return wrong("want spiffe://<trust-domain>/%s/<role>/<colo>/<name>", pathRoot)
	}
	id := Identity{Domain: sid.TrustDomain().Name(), Role: Role(parts[2]), Colo: parts[3], Name: parts[4]}
	if !id.Role.known() {
		return wrong("role %q is none of %s", id.Role, strings.Join(roleNames(), ", "))
	}
	if len(id.Colo) > maxColo || len(id.Name) > maxName {
		return wrong("colo and name are at most %d and %d bytes long", maxColo, maxName)
	}
	return id, nil
}

// FromCertificate returns the identity in a certificate, or a *RefusedError. It does
// not verify the certificate.
func FromCertificate(leaf *x509.Certificate) (Identity, error) {
	if len(leaf.URIs) != 1 {
		return Identity{}, refuse(BadIdentity, fmt.Errorf("the certificate has %d URI names; want one, spiffe://<trust-domain>/%s/<role>/<colo>/<name>", len(leaf.URIs), pathRoot))
	}
	sid, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return Identity{}, refuse(BadIdentity, fmt.Errorf("identity %q: %w", clip(leaf.URIs[0].String()), err))
	}
	id, err := fromSPIFFE(sid)
	if err != nil {
		return Identity{}, refuse(BadIdentity, err)
	}
	return id, nil
}

// FromState returns the identity at the other end of a connection whose handshake is
// done. ok is false without TLS (s is nil) and before the handshake.
func FromState(s *tls.ConnectionState) (id Identity, ok bool) {
	if s == nil || !s.HandshakeComplete || len(s.PeerCertificates) == 0 {
		return Identity{}, false
	}
	id, err := FromCertificate(s.PeerCertificates[0])
	return id, err == nil
}

// PeerOf returns the identity at the other end of c, which may be wrapped by types
// that have a NetConn method. ok is false if there is no TLS in it.
func PeerOf(c net.Conn) (id Identity, ok bool) {
	for {
		switch t := c.(type) {
		case interface{ ConnectionState() tls.ConnectionState }: // *tls.Conn, or what embeds it
			s := t.ConnectionState()
			return FromState(&s)
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return Identity{}, false
		}
	}
}

// Want returns a check that an identity has one of the roles and, unless it is empty,
// that name.
func Want(name string, roles ...Role) func(Identity) error {
	return func(id Identity) error {
		switch {
		case !id.Role.in(roles):
			return refuse(WrongRole, fmt.Errorf("%s has the role %s; want %s", id.Name, id.Role, joinRoles(roles)))
		case name != "" && id.Name != name:
			return refuse(WrongName, fmt.Errorf("the certificate is of %s, not of %s", id.Name, name))
		}
		return nil
	}
}

// Reason is why somebody was refused: a metric's label.
type Reason string

const (
	NoCertificate    Reason = "no_certificate"
	UnknownAuthority Reason = "unknown_authority"
	Expired          Reason = "expired" // or not valid yet
	BadCertificate   Reason = "bad_certificate"
	WrongDomain      Reason = "wrong_domain"
	BadIdentity      Reason = "bad_identity"
	WrongName        Reason = "wrong_name"
	WrongRole        Reason = "wrong_role"
	NotTLS           Reason = "not_tls" // what was sent is no TLS
	BadSignature     Reason = "bad_signature"
	// Refused is when the other end refused this node.
	Refused Reason = "refused_by_peer"
	// Failed is everything else: the connection broke, say.
	Failed Reason = "failed"
)

// RefusedError says that somebody is not who was wanted.
type RefusedError struct {
	Reason Reason
	Err    error
}

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(r Reason, err error) error { return &RefusedError{r, err} }

// noCertificate is how crypto/tls calls a client without a certificate.
const noCertificate = "tls: client didn't provide a certificate"

// ReasonOf returns why a handshake failed.
func ReasonOf(err error) Reason {
	var refused *RefusedError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var op *net.OpError
	switch {
	case errors.As(err, &refused):
		return refused.Reason
	case errors.As(err, &record):
		return NotTLS
	case err != nil && err.Error() == noCertificate:
		return NoCertificate
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return Refused
	}
	return Failed
}

// verifyReason tells why a chain was not verified.
func verifyReason(err error) Reason {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return UnknownAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Expired
	}
	return BadCertificate
}

// clip shortens text that a stranger wrote for an error message.
func clip(s string) string {
	if len(s) > 128 {
		return s[:128] + "…"
	}
	return s
}
