package trust

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
)

var pssOptions = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

// signatureAlgorithm returns how the key of a certificate signs.
func signatureAlgorithm(leaf *x509.Certificate) x509.SignatureAlgorithm {
	switch leaf.PublicKeyAlgorithm {
	case x509.Ed25519:
		return x509.PureEd25519
	case x509.RSA:
		return x509.SHA256WithRSAPSS
	default:
		return x509.ECDSAWithSHA256
	}
}
