package mdbfile

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"testing"

	"github.com/PowerDNS/lmdb-go/lmdb"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pairs is the content of a database, in key order.
type pairs []pair

type pair struct{ key, value []byte }

// content is what an environment holds by database.
type content map[string]pairs

func (c content) names() []string {
	names := make([]string, 0, len(c))
	for name := range c {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// fromModel sorts a model of a database.
func fromModel(m map[string][]byte) pairs {
	p := make(pairs, 0, len(m))
	for k, v := range m {
		p = append(p, pair{[]byte(k), v})
	}
	sort.Slice(p, func(i, j int) bool { return bytes.Compare(p[i].key, p[j].key) < 0 })
	return p
}

// build writes an environment file to memory.
func build(t testing.TB, c content) []byte {
	t.Helper()
	plan := planOf(t, c)
	var out bytes.Buffer
	w := NewWriter(&out, plan)
	for _, name := range c.names() {
		must(t, w.DB(name))
		for _, p := range c[name] {
			must(t, w.Add(p.key, p.value))
		}
	}
	must(t, w.Close())
	if int64(out.Len()) != plan.Size() {
		t.Fatalf("wrote %d bytes, planned %d", out.Len(), plan.Size())
	}
	return out.Bytes()
}

func planOf(t testing.TB, c content) *Plan {
	t.Helper()
	var p Planner
	for _, name := range c.names() {
		must(t, p.DB(name))
		for _, pr := range c[name] {
			must(t, p.Add(pr.key, len(pr.value)))
		}
	}
	plan, err := p.Plan()
	must(t, err)
	return plan
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read returns what the package's own reader finds in a file.
func read(r *bytes.Reader, names []string) (content, error) {
	f, err := Open(r, r.Size())
	if err != nil {
		return nil, err
	}
	return readFile(f, names)
}

func readFile(f *File, names []string) (content, error) {
	c := content{}
	for _, name := range names {
		cur, err := f.Cursor(name)
		if err != nil {
			return nil, err
		}
		defer cur.Close()
		c[name] = pairs{}
		for cur.Next() {
			v, err := cur.Value()
			if err != nil {
				return nil, err
			}
			if len(v) != cur.ValueLen() {
				return nil, fmt.Errorf("value of %d bytes, announced %d", len(v), cur.ValueLen())
			}
			c[name] = append(c[name], pair{bytes.Clone(cur.Key()), bytes.Clone(v)})
		}
		if err := cur.Err(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func sameContent(t testing.TB, what string, got, want content) {
	t.Helper()
	if !slices.Equal(got.names(), want.names()) {
		t.Fatalf("%s: databases %q, want %q", what, got.names(), want.names())
	}
	for name := range want {
		if len(got[name]) != len(want[name]) {
			t.Fatalf("%s: %s has %d pairs, want %d", what, name, len(got[name]), len(want[name]))
		}
		for i, w := range want[name] {
			if g := got[name][i]; !bytes.Equal(g.key, w.key) || !bytes.Equal(g.value, w.value) {
				t.Fatalf("%s: %s pair %d: key %.40q and %d bytes, want %.40q and %d",
					what, name, i, g.key, len(g.value), w.key, len(w.value))
			}
		}
	}
}

// lmdbEnv is an environment that LMDB has open.
type lmdbEnv struct {
	*lmdb.Env
	dir  string
	dbis map[string]lmdb.DBI
}

// openLMDB opens the environment in dir with LMDB; names are created if need be.
func openLMDB(t testing.TB, dir string, names []string) *lmdbEnv {
	t.Helper()
	env, err := lmdb.NewEnv()
	must(t, err)
	must(t, env.SetMaxDBs(80))
	must(t, env.SetMapSize(4<<30))
	must(t, env.Open(dir, lmdb.NoSync, 0o600))
	e := &lmdbEnv{env, dir, map[string]lmdb.DBI{}}
	must(t, env.Update(func(txn *lmdb.Txn) error {
		for _, name := range names {
			dbi, err := txn.OpenDBI(name, lmdb.Create)
			if err != nil {
				return err
			}
			e.dbis[name] = dbi
		}
		return nil
	}))
	return e
}

// install writes an environment file where LMDB can open it.
func install(t testing.TB, file []byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "data.mdb"), file, 0o600))
	return dir
}

// scan returns what LMDB finds.
func (e *lmdbEnv) scan(t testing.TB) content {
	t.Helper()
	c := content{}
	must(t, e.View(func(txn *lmdb.Txn) error {
		for name, dbi := range e.dbis {
			c[name] = pairs{}
			cur, err := txn.OpenCursor(dbi)
			if err != nil {
				return err
			}
			for {
				k, v, err := cur.Get(nil, nil, lmdb.Next)
				if lmdb.IsNotFound(err) {
					break
				}
				if err != nil {
					return err
				}
				c[name] = append(c[name], pair{k, v})
			}
			cur.Close()
		}
		return nil
	}))
	return c
}

// sameStats compares LMDB's counts with stat's.
func (e *lmdbEnv) sameStats(t testing.TB, what string, stat func(name string) (Stat, bool)) {
	t.Helper()
	must(t, e.View(func(txn *lmdb.Txn) error {
		for name, dbi := range e.dbis {
			s, err := txn.Stat(dbi)
			if err != nil {
				return err
			}
			want := Stat{
				Entries: s.Entries, Depth: int(s.Depth),
				BranchPages: s.BranchPages, LeafPages: s.LeafPages, OverflowPages: s.OverflowPages,
			}
			if got, ok := stat(name); !ok || got != want {
				t.Fatalf("%s: %s: %+v, LMDB says %+v", what, name, got, want)
			}
		}
		return nil
	}))
}

func (e *lmdbEnv) file(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, "data.mdb"))
	must(t, err)
	return b
}

// checkFile runs Check on a file and compares its report with LMDB's counts.
func checkFile(t testing.TB, file []byte) Report {
	t.Helper()
	rep, err := Check(context.Background(), bytes.NewReader(file), int64(len(file)), nil)
	must(t, err)
	return rep
}

// sequential returns n pairs with keys of keyLen and values of valueLen bytes.
func sequential(n, keyLen, valueLen int) pairs {
	p := make(pairs, n)
	for i := range p {
		key := fmt.Appendf(nil, "%0*d", keyLen, i)
		p[i] = pair{key[len(key)-keyLen:], bytes.Repeat([]byte{byte(i), 'v'}, valueLen/2+1)[:valueLen]}
	}
	return p
}

// newRand returns a source whose seed is printed when the test fails.
func newRand(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("MDBFILE_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("MDBFILE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
