package lmdbstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/txlog"
)

// TestPagesElsewhere puts pages of an environment where others should be, old ones that are
// free now among them. Every checksum in them is right, and what is read of them is an
// error or what it should be.
func TestPagesElsewhere(t *testing.T) {
	const n, trials = 4000, 120
	r := seeded(t)
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	apply(t, s, h.begin())
	long := strings.Repeat("k", 120) // so that there are several branch pages
	key := func(i int) string { return fmt.Sprintf("key-%06d-%s", i, long) }
	for version := range 30 { // the even keys, some again and again
		ops := make([]txlog.Op, 0, n)
		for i := 0; i < n; i += 2 {
			if version == 0 || r.IntN(20) == 0 {
				size := 60
				switch { // one page of its own, and two
				case i%200 == 0:
					size = 3000
				case i%500 == 0:
					size = 5000
				}
				ops = append(ops, put(key(i), strings.Repeat(fmt.Sprintf("%d.%d;", i, version), size/8)))
			}
		}
		apply(t, s, h.entry(ops...))
	}
	closed(t, s)
	file := filepath.Join(dir, nameOf(1), dataFile)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const size = 4096
	pages := len(whole) / size
	var branches, overflows []int
	for i := 2; i < pages; i++ {
		switch h := whole[i*size:]; {
		case binary.LittleEndian.Uint64(h) != uint64(i): // the second page of a long value, say
		case h[10] == 1:
			branches = append(branches, i)
		case h[10] == 4:
			overflows = append(overflows, i)
		}
	}
	somePage := func() int {
		if r.IntN(2) == 0 {
			return branches[r.IntN(len(branches))]
		}
		return 2 + r.IntN(pages-2)
	}
	ways := map[string]func(*Reader) error{
		"get": func(reader *Reader) error {
			for _, i := range r.Perm(n) {
				v, ok, err := reader.Get(nil, []byte(key(i)))
				if err != nil {
					return err
				}
				if want, there := h.model[key(i)]; ok != there || string(v) != want {
					t.Errorf("%.10s is %.20q (%t), want %.20q", key(i), v, ok, want)
				}
			}
			return nil
		},
		"absent": func(reader *Reader) error {
			for range n / 2 {
				i := 2 * r.IntN(n/2)
				if _, ok, err := reader.Get(nil, []byte(key(i))); err != nil || !ok {
					if err == nil {
						t.Errorf("%.10s is said to be absent", key(i))
					}
					return err
				}
			}
			return nil
		},
		"size": func(reader *Reader) error {
			return reader.View(func(tx *Tx) error {
				for _, i := range r.Perm(n) {
					size, ok, err := tx.Size([]byte(key(i)))
					if err != nil {
						return err
					}
					if want, there := h.model[key(i)]; ok != there || size != len(want) {
						t.Errorf("%.10s has %d bytes (%t), want %d", key(i), size, ok, len(want))
					}
				}
				return nil
			})
		},
	}
	for _, reverse := range []bool{false, true} {
		ways[fmt.Sprintf("scan, reverse %t", reverse)] = func(reader *Reader) error {
			from := 2 * r.IntN(n/2)
			to := from + 2*r.IntN((n-from)/2)
			at := 0
			err := reader.View(func(tx *Tx) error {
				return tx.Scan(Range{Start: []byte(key(from)), End: []byte(key(to)), Reverse: reverse}, func(k, v []byte) error {
					i := from + 2*at
					if reverse {
						i = to - 2 - 2*at
					}
					if at++; string(k) != key(i) || string(v) != h.model[key(i)] {
						t.Errorf("a scan from %d to %d comes to %.10s, %.20q, where %.10s is, %.20q", from, to, k, v, key(i), h.model[key(i)])
					}
					return nil
				})
			})
			if err == nil && at != (to-from)/2 {
				t.Errorf("a scan from %d to %d finds %d pairs", from, to, at)
			}
			return err
		}
	}
	for name, read := range ways {
		t.Run(name, func(t *testing.T) {
			found := 0
			for trial := range trials {
				b := bytes.Clone(whole)
				from, to := somePage(), somePage()
				switch trial % 4 {
				case 0: // swapped
					copy(b[from*size:][:size], whole[to*size:])
					fallthrough
				case 1: // a write went astray
					copy(b[to*size:][:size], whole[from*size:])
				case 2: // the same of long values, whose first page has a header
					from, to = overflows[r.IntN(len(overflows))], overflows[r.IntN(len(overflows))]
					copy(b[to*size:][:size], whole[from*size:])
				case 3: // a branch's keys or pointers
					to = branches[r.IntN(len(branches))]
					from = to
					at := to*size + 16 + r.IntN(size-16)
					for i := range 1 + r.IntN(8) {
						b[min(at+i, len(b)-1)] ^= byte(1 << r.IntN(8))
					}
				}
				if err := os.WriteFile(file, b, 0o644); err != nil {
					t.Fatal(err)
				}
				reader, err := OpenReader(dir, ReaderOptions{})
				if err == nil {
					err = read(reader)
					if closeErr := reader.Close(); err == nil {
						err = closeErr
					}
				}
				switch {
				case errors.Is(err, ErrDamaged):
					found++
				case err != nil:
					t.Fatal(err)
				}
				if t.Failed() {
					t.Fatalf("after page %d was put at %d of %d", from, to, pages)
				}
			}
			t.Logf("found %d times of %d", found, trials)
			if found < trials/20 {
				t.Error("that shows nothing")
			}
		})
	}
}

// TestMainPageElsewhere: the page that says where the databases are is another, of when
// they were empty.
func TestMainPageElsewhere(t *testing.T) {
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	apply(t, s, h.begin())
	file := filepath.Join(dir, nameOf(1), dataFile)
	read := func() []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	roots := func(b []byte) (main, txn uint64) { // the newer meta page's
		for at := 0; at < 2*4096; at += 4096 {
			if id := binary.LittleEndian.Uint64(b[at+144:]); id >= txn {
				main, txn = binary.LittleEndian.Uint64(b[at+128:]), id
			}
		}
		return main, txn
	}
	empty := read()
	was, _ := roots(empty)
	moved := false
	for i := 0; i < 10 && !moved; i++ {
		apply(t, s, h.entry(put("a", fmt.Sprint(i))))
		is, _ := roots(read())
		moved = is != was
	}
	closed(t, s)
	b := read()
	is, _ := roots(b)
	if !moved {
		t.Fatal("that shows nothing")
	}
	copy(b[is*4096:][:4096], empty[was*4096:])
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(tx *Tx) error{
		"scan":    func(tx *Tx) error { return tx.Scan(Range{}, func(_, _ []byte) error { return nil }) },
		"reverse": func(tx *Tx) error { return tx.Scan(Range{Reverse: true}, func(_, _ []byte) error { return nil }) },
		"pairs":   func(tx *Tx) error { _, err := tx.Pairs(); return err },
		"get":     func(tx *Tx) error { _, _, err := tx.Get([]byte("a")); return err },
	} {
		reader, err := OpenReader(dir, ReaderOptions{})
		if err == nil {
			err = reader.View(read)
			closed(t, reader)
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
