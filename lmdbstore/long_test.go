package lmdbstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
)

// TestLongValues: no memory is taken for a long value before somebody was asked, none for
// values that are not wanted, and those are verified nevertheless.
func TestLongValues(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	h := newHistory()
	long := strings.Repeat("long value ", 100_000)
	apply(t, s, h.begin(), h.entry(put("a", "1"), put("b", long), put("c", "3")))

	refuse := errors.New("no room")
	err := s.View(func(tx *Tx) error {
		if n, ok, err := tx.Size([]byte("b")); n != len(long) || !ok || err != nil {
			t.Errorf("size %d, %t, %v; want %d", n, ok, err, len(long))
		}
		if n, ok, err := tx.Size([]byte("bb")); n != 0 || ok || err != nil {
			t.Errorf("size of what is not there: %d, %t, %v", n, ok, err)
		}
		asked := 0
		v, ok, err := tx.GetWithin([]byte("b"), func(n int) error { asked = n; return nil })
		if string(v) != long || !ok || err != nil || asked < len(long) {
			t.Errorf("got %d bytes, %t, %v; %d were asked for", len(v), ok, err, asked)
		}
		if _, ok, err := tx.GetWithin([]byte("b"), func(int) error { return refuse }); ok || !errors.Is(err, refuse) {
			t.Errorf("without room: %t, %v", ok, err)
		}
		if v, ok, err := tx.GetWithin([]byte("a"), func(int) error { return refuse }); string(v) != "1" || !ok || err != nil {
			t.Errorf("a short one without room: %q, %t, %v", v, ok, err)
		}
		for _, reverse := range []bool{false, true} {
			var keys []string
			err := tx.Scan(Range{KeysOnly: true, Reverse: reverse, Room: func(int) error { return refuse }}, func(key, value []byte) error {
				keys = append(keys, string(key)+string(value))
				return nil
			})
			if got := strings.Join(keys, ""); err != nil || got != "abc" && got != "cba" {
				t.Errorf("keys %q, %v", got, err)
			}
		}
		asked = 0
		total := 0
		err = tx.Scan(Range{Room: func(n int) error { asked += n; return nil }}, func(_, value []byte) error {
			total += len(value)
			return nil
		})
		if err != nil || total != len(long)+2 || asked < len(long)-guard.Long || asked > len(long)+guard.Long {
			t.Errorf("%d bytes, %d were asked for, %v", total, asked, err)
		}
		if err := tx.Scan(Range{Room: func(int) error { return refuse }}, func(_, _ []byte) error { return nil }); !errors.Is(err, refuse) {
			t.Errorf("a scan without room: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Damage(); err != nil {
		t.Fatalf("no room was taken for damage: %v", err)
	}
	closed(t, s)

	// One bit, far into the value.
	file := filepath.Join(dir, "gen-000001", dataFile)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(content, []byte(long[len(long)-2000:]))
	if at < 0 {
		t.Fatal("the value is not in the file")
	}
	content[at] ^= 1
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(tx *Tx) error{
		"keys":        func(tx *Tx) error { return tx.Scan(Range{KeysOnly: true}, func(_, _ []byte) error { return nil }) },
		"get":         func(tx *Tx) error { _, _, err := tx.GetWithin([]byte("b"), func(int) error { return nil }); return err },
		"a miss next": func(tx *Tx) error { _, _, err := tx.Get([]byte("bb")); return err },
		"its size":    func(tx *Tx) error { _, _, err := tx.Size([]byte("aa")); return err },
	} {
		copied := filepath.Join(t.TempDir(), "store")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		s := open(t, copied, Options{Verify: VerifyQuick})
		if err := s.View(read); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
		s.Close() // may say that it is damaged
	}
}

// TestKeysTakeLittle: scans of keys verify values that no client is charged for, and so
// take next to no memory for them, however long they are.
func TestKeysTakeLittle(t *testing.T) {
	const scans, most = 200, 24 << 10
	for _, size := range []int{100, 60_000, 1_000_000} {
		s := open(t, t.TempDir(), Options{})
		h := newHistory()
		apply(t, s, h.begin(), h.entry(put("a", strings.Repeat("v", size))))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range scans {
			err := s.View(func(tx *Tx) error {
				return tx.Scan(Range{KeysOnly: true}, func(_, _ []byte) error { return nil })
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / scans; each > most {
			t.Errorf("a value of %d bytes: a scan takes %d bytes of memory, more than %d", size, each, most)
		} else {
			t.Logf("a value of %d bytes: a scan takes %d", size, each)
		}
		closed(t, s)
	}
}
