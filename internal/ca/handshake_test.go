package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"
)

// BenchmarkHandshake is a mutual TLS 1.3 handshake, both sides of it, in memory, with
// certificates of one authority: what decided on the kind of key.
func BenchmarkHandshake(b *testing.B) {
	for name, newKey := range map[string]func() (crypto.Signer, error){
		"P-256":   func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"Ed25519": func() (crypto.Signer, error) { _, key, err := ed25519.GenerateKey(rand.Reader); return key, err },
	} {
		b.Run(name, func(b *testing.B) {
			authority := benchCertificate(b, newKey, nil)
			roots := x509.NewCertPool()
			roots.AddCert(authority.Leaf)
			server := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, ClientAuth: tls.RequireAndVerifyClientCert,
				ClientCAs: roots, Certificates: []tls.Certificate{benchCertificate(b, newKey, &authority)}}
			client := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost",
				Certificates: []tls.Certificate{benchCertificate(b, newKey, &authority)}}
			for b.Loop() {
				here, there := net.Pipe()
				served := make(chan error)
				go func() { served <- tls.Server(there, server).Handshake() }()
				if err := tls.Client(here, client).Handshake(); err != nil {
					b.Fatal(err)
				}
				if err := <-served; err != nil {
					b.Fatal(err)
				}
				here.Close()
				there.Close()
			}
		})
	}
}

// benchCertificate returns one by an authority, or an authority.
func benchCertificate(b *testing.B, newKey func() (crypto.Signer, error), authority *tls.Certificate) tls.Certificate {
	b.Helper()
	key, err := newKey()
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	parent, by := template, key
	if authority == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
	} else {
		parent, by = authority.Leaf, authority.PrivateKey.(crypto.Signer)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
