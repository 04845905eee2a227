// Package signingtest makes signing keys for tests.
package signingtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/qs-peer/qs-peer/internal/signing"
)

// Keys are key files in a directory of a test's.
type Keys struct {
	Trusted string // path of the trusted keys
	dir     string
}

// New makes a signing key for each name, and trusts them all.
func New(t testing.TB, names ...string) *Keys {
	t.Helper()
	k := &Keys{dir: t.TempDir()}
	k.Trusted = filepath.Join(k.dir, "trusted")
	k.Trust(t, names...)
	return k
}

// Trust makes keys of more names, and trusts them, too.
func (k *Keys) Trust(t testing.TB, names ...string) {
	t.Helper()
	known, err := os.ReadFile(k.Trusted)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, name := range names {
		known = append(append(known, k.stranger(t, name)...), '\n')
	}
	next := k.Trusted + ".new"
	if err := os.WriteFile(next, known, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, k.Trusted); err != nil {
		t.Fatal(err)
	}
}

// stranger makes a key that nobody trusts, and returns its public half.
func (k *Keys) stranger(t testing.TB, name string) (verifier string) {
	t.Helper()
	signer, verifier, err := signing.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.Path(name), []byte(signer+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return verifier
}

// Path returns the path of a name's signing key.
func (k *Keys) Path(name string) string { return filepath.Join(k.dir, name+".key") }

// Signer returns a name's signer. Of a name that is not trusted it makes one.
func (k *Keys) Signer(t testing.TB, name string) *signing.Signer {
	t.Helper()
	if _, err := os.Stat(k.Path(name)); os.IsNotExist(err) {
		k.stranger(t, name)
	}
	s, err := signing.LoadSigner(k.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Open returns the trusted keys.
func (k *Keys) Open(t testing.TB) *signing.Trusted {
	t.Helper()
	trusted, err := signing.LoadTrusted(k.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	return trusted
}
