package signing

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const text = "qs-snapshot-v1\nthe text of a note\n"

// keys are pairs made for a test, by name.
type keys struct {
	t        testing.TB
	dir      string
	verifier map[string]string
	secrets  []string
}

func newKeys(t testing.TB, names ...string) *keys {
	k := &keys{t: t, dir: t.TempDir(), verifier: map[string]string{}}
	for _, name := range names {
		k.add(name, name)
	}
	return k
}

// add makes a key with a name, in a file of another.
func (k *keys) add(file, name string) {
	k.t.Helper()
	signer, verifier, err := GenerateKey(name)
	if err != nil {
		k.t.Fatal(err)
	}
	k.verifier[file] = verifier
	k.secrets = append(k.secrets, strings.SplitN(signer, "+", 5)[4])
	k.write(file, signer+"\n", 0o600)
}

func (k *keys) write(file, content string, mode os.FileMode) string {
	k.t.Helper()
	path := filepath.Join(k.dir, file)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		k.t.Fatal(err)
	}
	return path
}

func (k *keys) signer(file string) *Signer {
	k.t.Helper()
	s, err := LoadSigner(filepath.Join(k.dir, file))
	if err != nil {
		k.t.Fatal(err)
	}
	return s
}

func (k *keys) trusted(files ...string) *Trusted {
	k.t.Helper()
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintln(&b, k.verifier[f])
	}
	t, err := LoadTrusted(k.write("trusted", b.String(), 0o644))
	if err != nil {
		k.t.Fatal(err)
	}
	return t
}

// note signs text with the keys in files.
func (k *keys) note(text string, files ...string) []byte {
	k.t.Helper()
	var all []byte
	for _, f := range files {
		msg, err := k.signer(f).Sign([]byte(text))
		if err != nil {
			k.t.Fatal(err)
		}
		if all == nil {
			all = msg
			continue
		}
		if all, err = Merge(all, msg); err != nil {
			k.t.Fatal(err)
		}
	}
	return all
}

func TestOpen(t *testing.T) {
	k := newKeys(t, "m1", "m2", "m3", "stranger")
	k.add("m1-new", "m1")
	trusted := k.trusted("m1", "m1-new", "m2", "m3")
	// sigOf returns the signature lines of a note.
	sigOf := func(msg []byte) string { return string(msg[bytes.LastIndex(msg, []byte("\n\n"))+2:]) }
	m1 := k.note(text, "m1")
	badM2 := sigOf(k.note("qs-snapshot-v1\nanother text\n", "m2"))

	for name, c := range map[string]struct {
		note   string
		need   int
		reason Reason
		by     []string
	}{
		"one of one":                             {note: string(m1), need: 1, by: []string{"m1"}},
		"none required is one":                   {note: string(k.note(text, "stranger")), need: 0, reason: UnknownKey},
		"two of two":                             {note: string(k.note(text, "m2", "m1")), need: 2, by: []string{"m1", "m2"}},
		"more than required":                     {note: string(k.note(text, "m2", "m1", "m3")), need: 2, by: []string{"m1", "m2", "m3"}},
		"one of two":                             {note: string(m1), need: 2, reason: TooFew, by: []string{"m1"}},
		"one key twice":                          {note: string(m1) + sigOf(m1), need: 2, reason: TooFew, by: []string{"m1"}},
		"two keys of one name":                   {note: string(k.note(text, "m1", "m1-new")), need: 2, reason: TooFew, by: []string{"m1"}},
		"one and a stranger":                     {note: string(k.note(text, "m1", "stranger")), need: 2, reason: TooFew, by: []string{"m1"}},
		"a stranger":                             {note: string(k.note(text, "stranger")), need: 1, reason: UnknownKey},
		"unsigned":                               {note: text, need: 1, reason: Unsigned},
		"empty":                                  {note: "", need: 1, reason: Unsigned},
		"a signature of another text":            {note: text + "\n" + badM2, need: 1, reason: BadSignature},
		"a bad one spoils nothing":               {note: string(m1) + badM2, need: 1, by: []string{"m1"}},
		"a bad one does not count":               {note: string(m1) + badM2, need: 2, reason: BadSignature, by: []string{"m1"}},
		"a bad one before a good one":            {note: text + "\n" + badM2 + sigOf(k.note(text, "m2")), need: 1, by: []string{"m2"}},
		"a line changed":                         {note: strings.Replace(string(m1), "text", "Text", 1), need: 1, reason: BadSignature},
		"a line more":                            {note: "x\n" + string(m1), need: 1, reason: BadSignature},
		"no empty line":                          {note: text + sigOf(m1), need: 1, reason: Unsigned},
		"no newline at the end":                  {note: strings.TrimSuffix(string(m1), "\n"), need: 1, reason: Malformed},
		"something behind":                       {note: string(m1) + "x\n", need: 1, reason: Malformed},
		"a control character":                    {note: "\x00" + string(m1), need: 1, reason: Malformed},
		"not UTF-8":                              {note: "\xff" + string(m1), need: 1, reason: Malformed},
		"no signature after the line":            {note: text + "\n", need: 1, reason: Malformed},
		"the name of another":                    {note: strings.Replace(string(m1), "— m1", "— m2", 1), need: 1, reason: UnknownKey},
		"as many signatures as allowed":          {note: string(m1) + strings.Repeat(badM2, MaxSignatures-1), need: 1, by: []string{"m1"}},
		"too many signatures":                    {note: string(m1) + strings.Repeat(badM2, MaxSignatures), need: 1, reason: Malformed},
		"too long":                               {note: strings.Repeat("x", MaxNote) + string(m1), need: 1, reason: Malformed},
		"a good one behind as many of strangers": {note: string(k.note(text, "stranger")) + strings.Repeat(sigOf(k.note(text, "stranger")), 20) + sigOf(m1), need: 1, by: []string{"m1"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, by, err := trusted.Open([]byte(c.note), c.need)
			if ReasonOf(err) != c.reason {
				t.Fatalf("Open: %v (reason %q), want reason %q", err, ReasonOf(err), c.reason)
			}
			if refused, ok := errors.AsType[*RefusedError](err); ok {
				by = refused.By
				if got != nil {
					t.Errorf("a refused note gave a text")
				}
			} else if string(got) != text {
				t.Errorf("text %q, want %q", got, text)
			}
			if !slices.Equal(by, c.by) {
				t.Errorf("signed by %q, want %q", by, c.by)
			}
		})
	}
}

// A note in the form's own documentation opens.
func TestOpenNoteOfTheForm(t *testing.T) {
	k := newKeys(t)
	k.verifier["n"] = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
	note := "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n" +
		"— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
	_, by, err := k.trusted("n").Open([]byte(note), 1)
	if err != nil || !slices.Equal(by, []string{"PeterNeumann"}) {
		t.Fatalf("Open: %v, signed by %q", err, by)
	}
}

func TestMerge(t *testing.T) {
	k := newKeys(t, "m1", "m2", "m3")
	a, b, c := k.note(text, "m1"), k.note(text, "m2"), k.note(text, "m3")
	merge := func(a, b []byte) []byte {
		t.Helper()
		msg, err := Merge(a, b)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	ab := merge(a, b)
	for name, other := range map[string][]byte{
		"the other way round": merge(b, a), "what is there already": merge(ab, b), "with itself": merge(ab, ab),
	} {
		if !bytes.Equal(ab, other) {
			t.Errorf("merged %s: %q, want %q", name, other, ab)
		}
	}
	if !bytes.Equal(merge(merge(c, a), b), merge(merge(b, c), a)) {
		t.Error("the order of merging shows")
	}
	if _, err := Merge(a, k.note("qs-snapshot-v1\nanother text\n", "m2")); ReasonOf(err) != Differs {
		t.Errorf("merging other texts: %v", err)
	}
	if _, err := Merge(a, []byte(text)); ReasonOf(err) != Unsigned {
		t.Errorf("merging an unsigned text: %v", err)
	}
}

func TestCombine(t *testing.T) {
	k := newKeys(t, "m1", "m2", "m3", "stranger")
	trusted := k.trusted("m1", "m2", "m3")
	other := k.note("qs-snapshot-v1\nanother text\n", "m3")
	spoiled := append(slices.Clone(k.note(text, "m2", "stranger")), other[bytes.LastIndex(other, []byte("\n\n"))+2:]...)

	msg, by, err := trusted.Combine([]byte("junk"), k.note(text, "stranger"), k.note(text, "m1"), other, spoiled, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := k.note(text, "m1", "m2"); !bytes.Equal(msg, want) {
		t.Errorf("combined:\n%s\nwant:\n%s", msg, want)
	}
	if !slices.Equal(by, []string{"m1", "m2"}) {
		t.Errorf("signed by %q", by)
	}
	if _, _, err := trusted.Combine(k.note(text, "stranger"), []byte("junk\n\n")); ReasonOf(err) != UnknownKey {
		t.Errorf("nothing that counts: %v", err)
	}
	if _, _, err := trusted.Combine(); ReasonOf(err) != Unsigned {
		t.Errorf("no note: %v", err)
	}
}

func TestText(t *testing.T) {
	k := newKeys(t, "m1")
	for _, msg := range []string{text, string(k.note(text, "m1"))} {
		if got, err := Text([]byte(msg)); err != nil || string(got) != text {
			t.Errorf("Text(%q) = %q, %v", msg, got, err)
		}
	}
	if _, err := Text([]byte(text + "\nno signature\n")); ReasonOf(err) != Malformed {
		t.Errorf("malformed: %v", err)
	}
}

func TestSignRefusesWhatNobodyOpens(t *testing.T) {
	s := newKeys(t, "m1")
	for _, text := range []string{"", "no newline", strings.Repeat("x", MaxNote) + "\n", "\x00\n"} {
		if _, err := s.signer("m1").Sign([]byte(text)); err == nil {
			t.Errorf("signed %.20q", text)
		}
	}
}

func TestKnows(t *testing.T) {
	k := newKeys(t, "m1", "m2")
	k.add("m1-new", "m1")
	trusted := k.trusted("m1", "m2")
	for file, want := range map[string]bool{"m1": true, "m2": true, "m1-new": false} {
		if got := trusted.Knows(k.signer(file)); got != want {
			t.Errorf("Knows(%s) = %v", file, got)
		}
	}
	if got := trusted.Names(); !slices.Equal(got, []string{"m1", "m2"}) {
		t.Errorf("Names() = %q", got)
	}
}
