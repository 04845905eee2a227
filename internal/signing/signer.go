package signing

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// maxName is the length of the longest name of a key, in bytes.
const maxName = 128

// GenerateKey returns a new pair: what a signing key file and what a file of
// trusted keys holds. The name is without spaces and plus signs.
func GenerateKey(name string) (signer, verifier string, err error) {
	if err := checkName(name); err != nil {
		return "", "", err
	}
	return note.GenerateKey(rand.Reader, name)
}

func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("the key's name is %d bytes long; at most %d are allowed", len(name), maxName)
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '+' || r > '~' }) {
		return fmt.Errorf("the key's name %q: want printable ASCII without spaces and plus signs, such as a manager's name", name)
	}
	return nil
}

// Signer signs with the key in a file. It is safe for concurrent use.
type Signer struct {
	file file

	mu  sync.RWMutex // guards key
	key note.Signer
}

// LoadSigner reads a signing key file. One that others than its owner can read is
// refused (see trust.ReadPrivate).
func LoadSigner(path string) (*Signer, error) {
	s := &Signer{}
	s.file = file{path: path, read: trust.ReadPrivate, use: s.use}
	return s, s.file.load()
}

func (s *Signer) use(content []byte) error {
	// The package's errors say nothing of what they parse, and neither do ours.
	key, err := note.NewSigner(string(bytes.TrimSpace(content)))
	if err == nil {
		err = checkName(key.Name())
	}
	if err != nil {
		return fmt.Errorf("%s holds no signing key: want one line PRIVATE+KEY+NAME+HASH+DATA", s.file.path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
	return nil
}

// Watch reads the file again when it changes, until ctx ends. told, if not nil,
// hears of each change: nil, or why the key from before is still used.
func (s *Signer) Watch(ctx context.Context, told func(error)) { s.file.watch(ctx, told) }

func (s *Signer) current() note.Signer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.key
}

// Name returns the name of the key.
func (s *Signer) Name() string { return s.current().Name() }

// String returns the name and the hash of the key, which are no secret.
func (s *Signer) String() string { return keyID(s.current().Name(), s.current().KeyHash()) }

func keyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// Sign returns text, which must end in a newline, as a note with one signature.
func (s *Signer) Sign(text []byte) ([]byte, error) {
	msg, err := note.Sign(&note.Note{Text: string(text)}, s.current())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	// What nobody would open is not signed.
	if _, _, err := split(msg); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return msg, nil
}
