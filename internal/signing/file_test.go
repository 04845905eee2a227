package signing

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestKeyFiles(t *testing.T) {
	k := newKeys(t, "m1", "m2")
	secret, err := os.ReadFile(filepath.Join(k.dir, "m1"))
	if err != nil {
		t.Fatal(err)
	}
	signer := func(path string) error { _, err := LoadSigner(path); return err }
	trusted := func(path string) error { _, err := LoadTrusted(path); return err }
	public := k.verifier["m1"]
	twice := strings.Replace(string(secret), "+m1+", "+m2+", 1)
	fifo := filepath.Join(k.dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	many := ""
	for i := range maxKeys + 1 {
		_, v, _ := GenerateKey(fmt.Sprint("m", i))
		many += v + "\n"
	}
	// One public key under two names, each with the hash of its own.
	aliased := public + "\n" + alias(t, public, "m9")

	for name, c := range map[string]struct {
		load    func(string) error
		content string
		mode    os.FileMode
		path    string // instead of a file with the content
		want    string // in the error; empty: none
	}{
		"signer":                      {signer, string(secret), 0o600, "", ""},
		"signer, stricter":            {signer, string(secret), 0o400, "", ""},
		"signer, no newline":          {signer, strings.TrimSpace(string(secret)), 0o600, "", ""},
		"signer for others":           {signer, string(secret), 0o604, "", "mode 0604"},
		"signer that others write":    {signer, string(secret), 0o602, "", "mode 0602"},
		"no signer":                   {signer, "", 0, filepath.Join(k.dir, "none"), "no such file"},
		"a directory":                 {signer, "", 0, k.dir, "no regular file"},
		"a pipe":                      {signer, "", 0, fifo, "no regular file"},
		"a trusted key as signer":     {signer, public, 0o600, "", "holds no signing key"},
		"a signer of another name":    {signer, twice, 0o600, "", "holds no signing key"},
		"two signers":                 {signer, string(secret) + string(secret), 0o600, "", "holds no signing key"},
		"an empty signer":             {signer, "", 0o600, "", "holds no signing key"},
		"a large signer":              {signer, strings.Repeat("\n", 1<<20+1), 0o600, "", "longer than"},
		"trusted":                     {trusted, "# ours\n\n  " + public + " # the first\r\n" + k.verifier["m2"], 0o644, "", ""},
		"a key twice":                 {trusted, public + "\n" + public + "\n", 0o644, "", ""},
		"trusted that others write":   {trusted, public, 0o646, "", "mode 0646"},
		"no trusted key":              {trusted, "# none yet\n", 0o644, "", "holds no key"},
		"a signing key among them":    {trusted, public + "\n" + string(secret), 0o644, "", "line 2 is a signing key"},
		"a broken key":                {trusted, public + "\n" + public[:len(public)-4] + "\n", 0o644, "", "line 2 is no trusted key"},
		"a key under the wrong name":  {trusted, "x" + public, 0o644, "", "line 1 is no trusted key"},
		"one key under two names":     {trusted, aliased, 0o644, "", "m1 and m9 are one key"},
		"more keys than a note holds": {trusted, many, 0o644, "", "more than"},
		"large":                       {trusted, strings.Repeat("#\n", maxFile), 0o644, "", "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.path
			if path == "" {
				path = k.write("file", c.content, c.mode)
			}
			err := c.load(path)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v; want one with %q and the path", err, c.want)
			}
			for _, s := range k.secrets {
				if strings.Contains(err.Error(), s) {
					t.Errorf("the error holds the secret")
				}
			}
		})
	}
}

// alias returns a public key under another name.
func alias(t *testing.T, verifier, name string) string {
	t.Helper()
	s, err := renamed(verifier, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A Signer says nothing of its key when it is printed.
func TestSecretsAreNotPrinted(t *testing.T) {
	k := newKeys(t, "m1")
	s := k.signer("m1")
	if out := fmt.Sprintf("%v %s", s, s); strings.Contains(out, k.secrets[0]) || !strings.Contains(out, "m1+") {
		t.Errorf("printed: %s", out)
	}
}

func TestWatch(t *testing.T) {
	k := newKeys(t, "m1", "m2")
	trusted := k.trusted("m1")
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan error, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		trusted.Watch(ctx, func(err error) { told <- err })
	}()
	defer func() { cancel(); <-done }()
	next := func() error {
		t.Helper()
		select {
		case err := <-told:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("the change was not noticed")
			return nil
		}
	}
	opens := func(file string) bool {
		_, _, err := trusted.Open(k.note(text, file), 1)
		return err == nil
	}

	k.write("trusted", "junk\n", 0o644)
	if err := next(); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Fatalf("a broken file: %v", err)
	}
	if !opens("m1") {
		t.Error("a broken file took the keys away")
	}
	k.write("trusted", k.verifier["m2"], 0o646)
	if err := next(); err == nil || !strings.Contains(err.Error(), "0646") {
		t.Fatalf("a file that others write: %v", err)
	}
	k.write("trusted", k.verifier["m2"], 0o644)
	if err := next(); err != nil {
		t.Fatal(err)
	}
	if opens("m1") || !opens("m2") {
		t.Error("the new keys do not count")
	}
	if len(told) > 0 {
		t.Errorf("told again: %v", <-told)
	}
}

// A signing key can be replaced while it is in use.
func TestWatchSigner(t *testing.T) {
	k := newKeys(t, "m1")
	s := k.signer("m1")
	before := s.String()
	k.add("m1", "m1")
	var err error
	s.file.look(func(e error) { err = e })
	if err != nil || s.String() == before {
		t.Fatalf("look: %v; the key is %s, before it was %s", err, s, before)
	}
	if err := os.Chmod(filepath.Join(k.dir, "m1"), 0o644); err != nil {
		t.Fatal(err)
	}
	after := s.String()
	s.file.look(func(e error) { err = e })
	if err == nil || s.String() != after {
		t.Errorf("a key that others can read: %v; the key is %s, before it was %s", err, s, after)
	}
}
