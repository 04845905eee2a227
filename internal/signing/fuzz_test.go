package signing

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// renamed returns a verifier key under another name.
func renamed(verifier, name string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(strings.SplitN(verifier, "+", 3)[2])
	if err != nil {
		return "", err
	}
	return note.NewEd25519VerifierKey(name, data[1:])
}

func FuzzOpen(f *testing.F) {
	k := newKeys(f, "m1", "m2", "stranger")
	trusted := k.trusted("m1", "m2")
	signed := map[string]bool{text: true}
	for _, seed := range [][]byte{
		nil, []byte(text), k.note(text, "m1"), k.note(text, "m1", "m2"), k.note(text, "stranger"), []byte(text + "\n— m1 AAAAAAAA\n"),
	} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, msg := range [][]byte{a, b} {
			got, by, err := trusted.Open(msg, 1)
			if (err == nil) == (len(by) == 0) || err != nil && ReasonOf(err) == "" {
				t.Fatalf("Open(%q) = by %q, %v", msg, by, err)
			}
			// Nobody forges Ed25519: only what was signed opens.
			if err == nil && !signed[string(got)] {
				t.Fatalf("opened %q, which nobody signed", got)
			}
		}
		merged, err := Merge(a, b)
		if err != nil {
			return
		}
		again, err := Merge(b, a)
		if err != nil || !bytes.Equal(merged, again) {
			t.Fatalf("Merge(b, a) = %q, %v; Merge(a, b) = %q", again, err, merged)
		}
		_, byA, _ := trusted.Open(a, 1)
		_, by, _ := trusted.Open(merged, 1)
		if len(by) < len(byA) {
			t.Fatalf("merging lost signatures: %q of %q", by, byA)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	_, verifier, _ := GenerateKey("m1")
	f.Add([]byte(verifier + "\n"))
	f.Add([]byte("# x\n" + verifier + " # y\n\n" + verifier))
	f.Add([]byte("m1+00000000+AA=="))
	f.Fuzz(func(t *testing.T, content []byte) {
		keys, err := parseKeys(content)
		if (err == nil) == (len(keys) == 0) || len(keys) > maxKeys {
			t.Fatalf("parseKeys(%q): %d keys, %v", content, len(keys), err)
		}
	})
}
