package mdbfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/PowerDNS/lmdb-go/lmdb"
)

func TestWrittenFileIsReadByLMDB(t *testing.T) {
	for name, c := range map[string]content{
		"empty":       {"kv": {}, "meta": {}},
		"one pair":    {"kv": sequential(1, 8, 100), "meta": {}},
		"one leaf":    {"kv": sequential(20, 8, 100), "meta": sequential(4, 3, 16)},
		"two leaves":  {"kv": sequential(50, 8, 100), "meta": sequential(4, 3, 16)},
		"two levels":  {"kv": sequential(3000, 8, 100), "meta": sequential(4, 3, 16)},
		"three":       {"kv": sequential(20000, 20, 300), "meta": sequential(4, 3, 16)},
		"four":        {"kv": sequential(4000, 511, 1000), "meta": sequential(4, 3, 16)},
		"empty value": {"kv": sequential(1000, 5, 0), "meta": {}},
		"overflow":    {"kv": sequential(300, 9, 5000), "meta": sequential(2, 9, 70000)},
		"big":         {"kv": sequential(3, 9, 16<<20+1), "meta": {}},
		// 16+8+2 bytes a node of overhead: the first fills two leaves exactly, the second is two bytes more.
		"page-exact":   {"kv": sequential(2, 8, maxNode-nodeHeader-8)},
		"over a node":  {"kv": sequential(2, 8, maxNode-nodeHeader-8+1)},
		"brim":         {"kv": sequential(51*40, 8, 80-8-nodeHeader-offsetSize)},
		"brim + 2":     {"kv": append(sequential(51*40, 8, 80-8-nodeHeader-offsetSize), pair{[]byte("zz"), nil})},
		"overflow fit": {"kv": sequential(3, 8, 3*pageSize-headerSize), "meta": sequential(3, 8, 3*pageSize-headerSize+1)},
		"many names":   manyDBs(60),
	} {
		t.Run(name, func(t *testing.T) {
			file := build(t, c)
			rep := checkFile(t, file)
			if rep.FreePages != 0 || rep.Tail != 0 || int64(rep.Pages)*pageSize != int64(len(file)) {
				t.Fatalf("%+v for %d bytes", rep, len(file))
			}
			got, err := read(bytes.NewReader(file), c.names())
			must(t, err)
			sameContent(t, "own reader", got, c)
			env := openLMDB(t, install(t, file), c.names())
			defer env.Close()
			sameContent(t, "LMDB", env.scan(t), c)
			env.sameStats(t, "plan", planOf(t, c).Stat)
			env.sameStats(t, "check", func(name string) (Stat, bool) { s, ok := rep.DBs[name]; return s, ok })
			sameAsCompacted(t, env, file)
		})
	}
}

func manyDBs(n int) content {
	c := content{}
	for i := range n {
		c[fmt.Sprintf("db%02d", i)] = sequential(i%3*50, 8, 20)
	}
	return c
}

// sameAsCompacted holds a file against LMDB's own compacted copy of it, which
// keeps pages as they are and numbers them in the order that Writer uses.
func sameAsCompacted(t *testing.T, env *lmdbEnv, file []byte) {
	t.Helper()
	dir := t.TempDir()
	must(t, env.CopyFlag(dir, lmdb.CopyCompact))
	copied, err := os.ReadFile(filepath.Join(dir, "data.mdb"))
	must(t, err)
	if len(copied) != len(file) {
		t.Fatalf("LMDB's compacted copy has %d bytes, want %d", len(copied), len(file))
	}
	file = bytes.Clone(file)
	for pgno := range uint64(len(file) / pageSize) {
		ours, theirs := file[pgno*pageSize:][:pageSize], copied[pgno*pageSize:][:pageSize]
		// LMDB leaves what there was in the unused part of a page, and in the
		// meta pages the map size that this process uses.
		switch le.Uint16(ours[10:]) {
		case flagLeaf, flagBranch:
			if le.Uint64(ours) == pgno {
				clear(theirs[le.Uint16(ours[12:]):le.Uint16(ours[14:])])
			}
		case flagMeta:
			clear(ours[headerSize+16 : headerSize+24])
			clear(theirs[headerSize+16 : headerSize+24])
		}
		if !bytes.Equal(ours, theirs) {
			t.Fatalf("page %d of %d is another one in LMDB's compacted copy", pgno, len(file)/pageSize)
		}
	}
}

// TestEveryShape goes through all shapes of trees up to four levels: with the
// longest keys a leaf has 7 pairs and a branch page 8 children, so that each way
// in which the last page of a level can end up with one child is among them.
func TestEveryShape(t *testing.T) {
	all := sequential(1300, MaxKey, 10)
	for i := range all {
		all[i].value = all[i].value[:i%11]
	}
	depths := map[int]int{}
	for n := range len(all) {
		if n%7 > 1 {
			continue // no new leaf
		}
		c := content{"kv": all[:n]}
		file := build(t, c)
		rep := checkFile(t, file)
		depths[rep.DBs["kv"].Depth]++
		if rep.DBs["kv"].Entries != uint64(n) || rep.FreePages != 0 || rep.Tail != 0 {
			t.Fatalf("%d pairs: %+v", n, rep)
		}
		got, err := read(bytes.NewReader(file), c.names())
		must(t, err)
		sameContent(t, fmt.Sprintf("%d pairs", n), got, c)
	}
	if len(depths) != 5 {
		t.Fatalf("depths %v, want 0 to 4", depths)
	}
}

// TestMutation lets LMDB change files that were written here, and checks the
// result with both.
func TestMutation(t *testing.T) {
	r := newRand(t)
	shapes := []struct {
		name         string
		start, steps int
		keyLen       func() int
		valueLen     func() int
	}{
		{"tiny", 3, 400, upTo(r, 1, 8), upTo(r, 0, 40)},
		{"from nothing", 0, 400, upTo(r, 1, 60), upTo(r, 0, 400)},
		{"small values", 10000, 2000, upTo(r, 8, 40), upTo(r, 0, 200)},
		{"long keys", 1200, 1500, upTo(r, 480, MaxKey), upTo(r, 0, 20)},
		{"any keys, any values", 2500, 1500, upTo(r, 1, MaxKey), func() int { return skewed(r, 70_000) }},
		{"around half a page", 2000, 1500, upTo(r, 1, 30), upTo(r, 1900, 2200)},
	}
	// Last children at every level: 8 children a branch page, 7 pairs a leaf.
	for _, n := range []int{8, 57, 58, 64, 449, 450, 456, 457, 512} {
		shapes = append(shapes, shapes[3])
		s := &shapes[len(shapes)-1]
		s.name, s.start, s.steps = fmt.Sprintf("last child %d", n), n, 150
		s.keyLen, s.valueLen = upTo(r, MaxKey, MaxKey), upTo(r, 10, 10)
	}
	for _, s := range shapes {
		for _, order := range []string{"random", "ascending", "descending deletes"} {
			if order == "ascending" && s.steps < 300 {
				continue
			}
			t.Run(s.name+"/"+order, func(t *testing.T) {
				model := map[string][]byte{}
				for len(model) < s.start {
					model[string(randomBytes(r, s.keyLen()))] = randomBytes(r, s.valueLen())
				}
				c := content{"kv": fromModel(model), "meta": sequential(4, 4, 16)}
				env := openLMDB(t, install(t, build(t, c)), c.names())
				defer env.Close()
				const intervals = 3
				for range intervals {
					mutate(t, r, env, model, s.steps/intervals, order, s.keyLen, s.valueLen)
					want := content{"kv": fromModel(model), "meta": c["meta"]}
					sameContent(t, "LMDB", env.scan(t), want)
					file := env.file(t)
					rep := checkFile(t, file)
					env.sameStats(t, "check", func(name string) (Stat, bool) { s, ok := rep.DBs[name]; return s, ok })
					got, err := read(bytes.NewReader(file), want.names())
					must(t, err)
					sameContent(t, "own reader", got, want)
					if !bytes.Equal(build(t, got), build(t, want)) {
						t.Fatal("the same pairs gave other bytes")
					}
				}
			})
		}
	}
}

// mutate makes about n changes to kv in transactions of a few each.
func mutate(t *testing.T, r *rand.Rand, env *lmdbEnv, model map[string][]byte, n int, order string, keyLen, valueLen func() int) {
	sorted := fromModel(model)
	for n > 0 {
		must(t, env.Update(func(txn *lmdb.Txn) error {
			for range 1 + r.IntN(60) {
				n--
				var key []byte
				switch what := r.IntN(10); {
				case what < 4 && len(sorted) > 0: // delete
					i := r.IntN(len(sorted))
					if order == "descending deletes" {
						i = len(sorted) - 1
					}
					key = sorted[i].key
					sorted = append(sorted[:i], sorted[i+1:]...)
					if _, ok := model[string(key)]; ok {
						delete(model, string(key))
						if err := txn.Del(env.dbis["kv"], key, nil); err != nil {
							return err
						}
					}
					continue
				case what < 6 && len(sorted) > 0: // overwrite
					key = sorted[r.IntN(len(sorted))].key
				case order == "ascending":
					key = randomBytes(r, keyLen())
					key[0] = 0xff
				default:
					key = randomBytes(r, keyLen())
				}
				value := randomBytes(r, valueLen())
				model[string(key)] = value
				if err := txn.Put(env.dbis["kv"], key, value, 0); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

func upTo(r *rand.Rand, low, high int) func() int {
	return func() int { return low + r.IntN(high-low+1) }
}

// skewed returns a length below max that is mostly small.
func skewed(r *rand.Rand, max int) int {
	return int(float64(max) * r.Float64() * r.Float64() * r.Float64() * r.Float64() * r.Float64())
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, (n+7)&^7)
	for i := 0; i < len(b); i += 8 {
		le.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

func TestPlannerRefuses(t *testing.T) {
	long := bytes.Repeat([]byte("k"), MaxKey+1)
	for name, feed := range map[string]func(p *Planner) error{
		"pair before a database": func(p *Planner) error { return p.Add([]byte("a"), 1) },
		"no name":                func(p *Planner) error { return p.DB("") },
		"name with NUL":          func(p *Planner) error { return p.DB("a\x00b") },
		"long name":              func(p *Planner) error { return p.DB(string(long)) },
		"names out of order":     func(p *Planner) error { return errors.Join(ok(p.DB("b")), p.DB("a")) },
		"name twice":             func(p *Planner) error { return errors.Join(ok(p.DB("b")), p.DB("b")) },
		"empty key":              func(p *Planner) error { return errors.Join(ok(p.DB("b")), p.Add(nil, 1)) },
		"long key":               func(p *Planner) error { return errors.Join(ok(p.DB("b")), p.Add(long, 1)) },
		"long value":             func(p *Planner) error { return errors.Join(ok(p.DB("b")), p.Add(long[:1], MaxValue+1)) },
		"key twice":              func(p *Planner) error { return errors.Join(ok(p.DB("b")), ok(p.Add(long[:2], 1)), p.Add(long[:2], 1)) },
		"keys out of order":      func(p *Planner) error { return errors.Join(ok(p.DB("b")), ok(p.Add(long[:2], 1)), p.Add(long[:1], 1)) },
		"nothing":                func(p *Planner) error { _, err := p.Plan(); return err },
		"too many databases": func(p *Planner) error {
			var err error
			for i := 0; i < 100 && err == nil; i++ {
				err = p.DB(fmt.Sprintf("%03d", i))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var p Planner
			err := feed(&p)
			if err == nil {
				t.Fatal("accepted")
			}
			if _, again := p.Plan(); again == nil {
				t.Fatal("made a plan after an error")
			}
		})
	}
}

// ok panics on an error where the test expects none.
func ok(err error) error {
	if err != nil {
		panic(err)
	}
	return nil
}

func TestWriterRefusesOtherPairs(t *testing.T) {
	planned := sequential(500, 8, 100)
	plan := planOf(t, content{"kv": planned, "meta": sequential(1, 4, 4)})
	longer := sequential(500, 8, 105)
	for name, write := range map[string]func(w *Writer) error{
		"nothing":      func(w *Writer) error { return nil },
		"no meta":      func(w *Writer) error { return writeDB(w, "kv", planned) },
		"another name": func(w *Writer) error { return w.DB("kw") },
		"other order":  func(w *Writer) error { return w.DB("meta") },
		"no database":  func(w *Writer) error { return w.Add([]byte("a"), nil) },
		"one pair less": func(w *Writer) error {
			return errors.Join(writeDB(w, "kv", planned[:499]), writeDB(w, "meta", sequential(1, 4, 4)))
		},
		"many less": func(w *Writer) error {
			return errors.Join(writeDB(w, "kv", planned[:50]), writeDB(w, "meta", sequential(1, 4, 4)))
		},
		"one pair more": func(w *Writer) error {
			return errors.Join(writeDB(w, "kv", sequential(501, 8, 100)), writeDB(w, "meta", sequential(1, 4, 4)))
		},
		"many more": func(w *Writer) error {
			return errors.Join(writeDB(w, "kv", sequential(50000, 8, 100)), writeDB(w, "meta", sequential(1, 4, 4)))
		},
		"longer values": func(w *Writer) error {
			return errors.Join(writeDB(w, "kv", longer), writeDB(w, "meta", sequential(1, 4, 4)))
		},
		"overflow": func(w *Writer) error { return writeDB(w, "kv", sequential(500, 8, 9000)) },
		"one db more": func(w *Writer) error {
			return errors.Join(writeDB(w, "kv", planned), writeDB(w, "meta", sequential(1, 4, 4)), writeDB(w, "more", nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var n counter
			w := NewWriter(&n, plan)
			err := write(w)
			closeErr := w.Close()
			if closeErr == nil || !errors.Is(closeErr, errOffPlan) {
				t.Fatalf("Close: %v (while writing: %v)", closeErr, err)
			}
			if int64(n) > plan.Size() {
				t.Fatalf("wrote %d bytes of %d", n, plan.Size())
			}
		})
	}
}

func writeDB(w *Writer, name string, p pairs) error {
	if err := w.DB(name); err != nil {
		return err
	}
	for _, p := range p {
		if err := w.Add(p.key, p.value); err != nil {
			return err
		}
	}
	return nil
}

type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// brokenWriter fails after n bytes.
type brokenWriter struct{ n int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if len(b) > w.n {
		return w.n, io.ErrClosedPipe
	}
	w.n -= len(b)
	return len(b), nil
}

func TestWriterPassesErrorsOn(t *testing.T) {
	c := content{"kv": sequential(300, 8, 9000)}
	plan := planOf(t, c)
	for _, n := range []int{0, pageSize, 2 << 20, int(plan.Size()) - 1} {
		w := NewWriter(&brokenWriter{n}, plan)
		writeDB(w, "kv", c["kv"])
		if err := w.Close(); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if err := w.Close(); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("second Close after %d bytes: %v", n, err)
		}
	}
}
