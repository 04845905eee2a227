package mdbfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/PowerDNS/lmdb-go/lmdb"
)

func TestGet(t *testing.T) {
	c := content{"kv": sequential(5000, 100, 50), "big": sequential(5, 5, 9000), "empty": {}}
	file := build(t, c)
	f, err := Open(bytes.NewReader(file), int64(len(file)))
	must(t, err)
	for _, name := range c.names() {
		for _, p := range c[name] {
			v, ok, err := f.Get(name, p.key)
			if err != nil || !ok || !bytes.Equal(v, p.value) {
				t.Fatalf("Get %s %q: %d bytes, %v, %v", name, p.key, len(v), ok, err)
			}
			for _, absent := range [][]byte{append(bytes.Clone(p.key), 0), p.key[:len(p.key)-1], nil} {
				if _, ok, err := f.Get(name, absent); ok || err != nil {
					t.Fatalf("Get %s %q: %v, %v", name, absent, ok, err)
				}
			}
		}
		s, err := f.Stat(name)
		if err != nil || s.Entries != uint64(len(c[name])) {
			t.Fatalf("Stat %s: %+v, %v", name, s, err)
		}
	}
	for _, name := range []string{"", "k", "kv2", "zz"} {
		if _, _, err := f.Get(name, []byte("a")); !errors.Is(err, ErrNoSuchDB) {
			t.Fatalf("Get in %q: %v", name, err)
		}
		if _, err := f.Cursor(name); !errors.Is(err, ErrNoSuchDB) {
			t.Fatalf("Cursor in %q: %v", name, err)
		}
	}
}

// TestCursorClosed ends iterations at several places: nothing may be read
// afterwards.
func TestCursorClosed(t *testing.T) {
	file := build(t, content{"kv": sequential(50_000, 100, 50)})
	for _, pairs := range []int{0, 1, 30_000, 50_000} {
		r := &closable{Reader: bytes.NewReader(file)}
		f, err := Open(r, int64(len(file)))
		must(t, err)
		c, err := f.Cursor("kv")
		must(t, err)
		for n := range pairs {
			if !c.Next() {
				t.Fatalf("ended after %d pairs: %v", n, c.Err())
			}
		}
		c.Close()
		r.closed.Store(true)
		c.Close()
		if c.Next() || c.Err() != nil {
			t.Errorf("closed after %d pairs: another follows, or %v", pairs, c.Err())
		}
		if r.late.Load() {
			t.Errorf("closed after %d pairs: the file was read afterwards", pairs)
		}
	}
}

// closable notes whether it is read once it is closed.
type closable struct {
	*bytes.Reader
	closed, late atomic.Bool
}

func (c *closable) ReadAt(b []byte, off int64) (int, error) {
	if c.closed.Load() {
		c.late.Store(true)
	}
	return c.Reader.ReadAt(b, off)
}

// TestSnapshotOfLiveEnvironment reads what a read transaction sees while LMDB
// goes on changing, growing and reusing pages.
func TestSnapshotOfLiveEnvironment(t *testing.T) {
	r := newRand(t)
	keyLen, valueLen := upTo(r, 1, 200), func() int { return skewed(r, 70_000) }
	model := map[string][]byte{}
	dir := t.TempDir()
	env := openLMDB(t, dir, []string{"kv", "meta"})
	defer env.Close()
	data, err := os.Open(filepath.Join(dir, "data.mdb"))
	must(t, err)
	defer data.Close()

	for round := range 12 {
		mutate(t, r, env, model, 1500, "random", keyLen, valueLen)
		want := content{"kv": fromModel(model), "meta": {}}

		txn, err := env.BeginTxn(nil, lmdb.Readonly)
		must(t, err)
		fi, err := data.Stat()
		must(t, err)
		f, err := OpenTxn(data, fi.Size(), uint64(txn.ID()))
		must(t, err)
		if f.Txnid() != uint64(txn.ID()) {
			t.Fatalf("transaction %d, want %d", f.Txnid(), txn.ID())
		}
		// Enough commits that both meta pages and all pages that LMDB believes
		// to be free are overwritten.
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for n := 0; ; n++ {
				select {
				case <-stop:
					if n >= 5 {
						return
					}
				default:
				}
				mutate(t, r, env, model, 50, "random", keyLen, valueLen)
			}
		}()
		for range 3 {
			got, err := readFile(f, want.names())
			must(t, err)
			sameContent(t, fmt.Sprintf("round %d while LMDB writes", round), got, want)
		}
		close(stop)
		<-stopped
		got, err := readFile(f, want.names())
		must(t, err)
		sameContent(t, fmt.Sprintf("round %d after many commits", round), got, want)
		if _, err := OpenTxn(data, fi.Size(), f.Txnid()); !errors.Is(err, ErrNoSuchTxn) {
			t.Fatalf("transaction %d, overwritten meanwhile: %v", f.Txnid(), err)
		}
		txn.Abort()
		checkFile(t, env.file(t))
	}
}

// TestChurnedEnvironment holds reader and checker against LMDB on environments
// with free lists of several sizes, dropped databases and long readers.
func TestChurnedEnvironment(t *testing.T) {
	r := newRand(t)
	keyLen, valueLen := upTo(r, 1, MaxKey), func() int { return skewed(r, 70_000) }
	model := map[string][]byte{}
	env := openLMDB(t, t.TempDir(), []string{"kv", "meta", "temp"})
	defer env.Close()
	sawFree := false
	for range 15 {
		switch r.IntN(4) {
		case 0: // most of it goes
			must(t, env.Update(func(txn *lmdb.Txn) error {
				for k := range model {
					if r.IntN(10) == 0 {
						continue
					}
					delete(model, k)
					if err := txn.Del(env.dbis["kv"], []byte(k), nil); err != nil {
						return err
					}
				}
				return nil
			}))
		case 1: // another database comes and goes
			must(t, env.Update(func(txn *lmdb.Txn) error {
				for i := range r.IntN(20000) {
					if err := txn.Put(env.dbis["temp"], fmt.Appendf(nil, "%d", i), make([]byte, 300), 0); err != nil {
						return err
					}
				}
				return nil
			}))
			must(t, env.Update(func(txn *lmdb.Txn) error { return txn.Drop(env.dbis["temp"], false) }))
		case 2: // a reader keeps pages from being reused
			txn, err := env.BeginTxn(nil, lmdb.Readonly)
			must(t, err)
			mutate(t, r, env, model, 2000, "random", keyLen, valueLen)
			txn.Abort()
		}
		mutate(t, r, env, model, 1000, "random", keyLen, valueLen)
		want := content{"kv": fromModel(model), "meta": {}, "temp": {}}
		file := env.file(t)
		rep := checkFile(t, file)
		sawFree = sawFree || rep.FreePages > 1000
		env.sameStats(t, "check", func(name string) (Stat, bool) { s, ok := rep.DBs[name]; return s, ok })
		got, err := read(bytes.NewReader(file), want.names())
		must(t, err)
		sameContent(t, "own reader", got, want)
	}
	if !sawFree {
		t.Error("no free list of more than a page: the test shows less than it should")
	}
}

func TestNewEnvironment(t *testing.T) {
	env := openLMDB(t, t.TempDir(), nil)
	file := env.file(t)
	env.Close()
	rep := checkFile(t, file)
	if rep.Txnid != 0 || rep.Pages != 2 || len(rep.DBs) != 0 {
		t.Fatalf("%+v", rep)
	}
	f, err := Open(bytes.NewReader(file), int64(len(file)))
	must(t, err)
	if _, err := f.Cursor("kv"); !errors.Is(err, ErrNoSuchDB) {
		t.Fatal(err)
	}
}

func TestCheckIsCancelled(t *testing.T) {
	file := build(t, content{"kv": sequential(1000, 8, 100)})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(ctx, bytes.NewReader(file), int64(len(file)), nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// failingReader fails to read one page.
type failingReader struct {
	*bytes.Reader
	page int64
}

var errMedium = errors.New("medium error")

func (r failingReader) ReadAt(b []byte, at int64) (int, error) {
	if at <= r.page*pageSize && r.page*pageSize < at+int64(len(b)) {
		return 0, errMedium
	}
	return r.Reader.ReadAt(b, at)
}

// TestReadErrors tells failing disks from damaged files.
func TestReadErrors(t *testing.T) {
	c := content{"kv": sequential(1000, 8, 100), "meta": sequential(3, 4, 9000)}
	file := build(t, c)
	for page := range int64(len(file) / pageSize) {
		r := failingReader{bytes.NewReader(file), page}
		f, err := Open(r, r.Size())
		if err == nil {
			_, err = readFile(f, c.names())
		}
		_, checkErr := Check(context.Background(), r, r.Size(), nil)
		// The insides of overflow runs are not read by Check.
		inside := le.Uint16(file[page*pageSize+10:]) == uint16('v')<<8|uint16('v') || checkErr == nil
		for _, err := range []error{err, checkErr} {
			if (err != nil || !inside) && (!errors.Is(err, errMedium) || errors.Is(err, ErrDamaged)) {
				t.Fatalf("page %d: %v", page, err)
			}
		}
		if err == nil {
			t.Fatalf("page %d was not read", page)
		}
	}
}
