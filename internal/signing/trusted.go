package signing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
)

// maxKeys is how many trusted keys a file may hold: a note has room for all of
// them.
const maxKeys = MaxSignatures

// Trusted are the keys whose signatures count. It is safe for concurrent use.
type Trusted struct {
	file file

	mu   sync.RWMutex             // guards keys
	keys map[string]note.Verifier // by keyID; never changed, only replaced
}

// LoadTrusted reads a file of trusted keys. One that anybody can write is
// refused.
func LoadTrusted(path string) (*Trusted, error) {
	t := &Trusted{}
	t.file = file{path: path, read: readPublic, use: t.use}
	return t, t.file.load()
}

func (t *Trusted) use(content []byte) error {
	keys, err := parseKeys(content)
	if err != nil {
		return fmt.Errorf("trusted keys in %s: %w", t.file.path, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = keys
	return nil
}

// parseKeys reads one verifier key a line.
func parseKeys(content []byte) (map[string]note.Verifier, error) {
	keys := make(map[string]note.Verifier)
	names := make(map[string]string) // of each public key
	n := 0
	for line := range bytes.Lines(content) {
		n++
		text, _, _ := strings.Cut(string(line), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		key, err := note.NewVerifier(text)
		if err == nil {
			err = checkName(key.Name())
		}
		switch {
		case strings.HasPrefix(text, "PRIVATE+KEY"):
			return nil, fmt.Errorf("line %d is a signing key: others can read it here, so make a new one, and put its public half here", n)
		case err != nil:
			return nil, fmt.Errorf("line %d is no trusted key: want NAME+HASH+DATA, and what is behind # is a comment", n)
		}
		public := strings.SplitN(text, "+", 3)[2] // its base64 may have more of them
		if other, ok := names[public]; ok && other != key.Name() {
			return nil, fmt.Errorf("line %d: %s and %s are one key: two signatures by it would be taken for the word of two", n, other, key.Name())
		}
		names[public] = key.Name()
		keys[keyID(key.Name(), key.KeyHash())] = key
		if len(keys) > maxKeys {
			return nil, fmt.Errorf("it holds more than %d keys", maxKeys)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key: nothing could ever be accepted")
	}
	return keys, nil
}

// Watch reads the file again when it changes, until ctx ends. told, if not nil,
// hears of each change: nil, or why the keys from before still count.
func (t *Trusted) Watch(ctx context.Context, told func(error)) { t.file.watch(ctx, told) }

func (t *Trusted) current() map[string]note.Verifier {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.keys
}

// Names returns the different names of the keys, in order. More signatures than
// there are names can not be required.
func (t *Trusted) Names() []string {
	var names []string
	for _, key := range t.current() {
		names = append(names, key.Name())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Knows reports whether what s signs now counts.
func (t *Trusted) Knows(s *Signer) bool {
	msg, err := s.Sign([]byte("qs-peer probe v1\n"))
	if err != nil {
		return false
	}
	_, _, err = t.Open(msg, 1)
	return err == nil
}

// Open returns the text of a note that keys of at least need different names
// signed (one at least), and those names in order. Otherwise the error is a
// *RefusedError, which tells the names, too.
func (t *Trusted) Open(msg []byte, need int) (text []byte, by []string, err error) {
	o, err := t.open(msg)
	if err != nil {
		return nil, nil, err
	}
	if err := o.enough(need); err != nil {
		return nil, nil, err
	}
	return []byte(o.text), o.by, nil
}

// Combine returns a note with those signatures of all notes that count, and
// whose they are; notes of other texts than the first that opens, and what does
// not count, are left out. It fails if none counts.
func (t *Trusted) Combine(notes ...[]byte) (msg []byte, by []string, err error) {
	var all *opened
	var first error
	for _, msg := range notes {
		o, err := t.open(msg)
		if err == nil {
			err = o.enough(1)
		}
		switch {
		case err != nil:
			if first == nil {
				first = err
			}
		case all == nil:
			all = o
		case all.text == o.text:
			all.good = append(all.good, o.good...)
			all.by = append(all.by, o.by...)
		}
	}
	if all == nil {
		if first == nil {
			first = refuse(Unsigned, "there is no note")
		}
		return nil, nil, first
	}
	slices.Sort(all.by)
	msg, err = join(all.text, one(ordered(all.good)))
	return msg, slices.Compact(all.by), err
}

// one keeps one signature of each key. Ed25519 signatures are deterministic, but
// whoever holds a key can make many.
func one(sigs []note.Signature) []note.Signature {
	return slices.CompactFunc(sigs, func(a, b note.Signature) bool { return a.Name == b.Name && a.Hash == b.Hash })
}

// opened is a note whose signatures were looked at.
type opened struct {
	text    string
	good    []note.Signature
	by      []string // whose the good ones are, each once, in order
	bad     []string // keys that are trusted and did not sign this text
	unknown []string // keys that are not trusted
}

func (t *Trusted) open(msg []byte) (*opened, error) {
	text, sigs, err := split(msg)
	if err != nil {
		return nil, err
	}
	keys := t.current()
	o := &opened{text: text}
	for _, s := range sigs {
		id := keyID(s.Name, s.Hash)
		switch key, ok := keys[id]; {
		case !ok:
			o.unknown = append(o.unknown, id)
		case key.Verify([]byte(text), raw(s)):
			o.good = append(o.good, s)
			o.by = append(o.by, s.Name)
		default:
			o.bad = append(o.bad, id)
		}
	}
	slices.Sort(o.by)
	o.by = slices.Compact(o.by)
	return o, nil
}

// enough says whether at least need signers are behind the note.
func (o *opened) enough(need int) error {
	need = max(need, 1)
	if len(o.by) >= need {
		return nil
	}
	e := &RefusedError{By: o.by}
	switch {
	case len(o.bad) > 0:
		e.Reason = BadSignature
		e.detail = fmt.Sprintf("the signature by %s is not of this text", clip(o.bad))
	case len(o.by) == 0:
		e.Reason = UnknownKey
		e.detail = fmt.Sprintf("nobody who is trusted signed it; %s did", clip(o.unknown))
	default:
		e.Reason = TooFew
		e.detail = fmt.Sprintf("%d of the %d signatures that are required: %s signed it", len(o.by), need, clip(o.by))
	}
	return e
}

// clip shortens what strangers wrote for an error message.
func clip(names []string) string {
	const most = 160
	s := fmt.Sprintf("%q", names)
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Trim(s, "[]")
}
