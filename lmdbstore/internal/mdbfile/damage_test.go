package mdbfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/PowerDNS/lmdb-go/lmdb"
)

// damageSample is a small environment with everything in it: two levels,
// overflow pages, a free list, both meta pages in use.
func damageSample(t testing.TB) ([]byte, content) {
	t.Helper()
	c := content{"kv": sequential(100, 60, 100), "meta": append(sequential(3, 4, 16), pair{[]byte("big"), bytes.Repeat([]byte("B"), 9000)})}
	env := openLMDB(t, install(t, build(t, c)), c.names())
	defer env.Close()
	for i := range 3 {
		must(t, env.Update(func(txn *lmdb.Txn) error {
			p := c["kv"][i*30]
			if err := txn.Del(env.dbis["kv"], p.key, nil); err != nil {
				return err
			}
			return txn.Put(env.dbis["kv"], p.key, bytes.Repeat([]byte("n"), 3000*i+10), 0)
		}))
	}
	return env.file(t), env.scan(t)
}

// examine runs everything that reads a file and returns the first error, which
// must say that the file is damaged.
func examine(t testing.TB, file []byte, size int64, names []string) (Report, content, error) {
	t.Helper()
	r := bytes.NewReader(file)
	rep, err := Check(context.Background(), r, size, nil)
	got, readErr := func() (content, error) {
		f, err := Open(r, size)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			for _, key := range []string{"", "0000", "big", strings.Repeat("0", 57) + "077"} {
				if _, _, err := f.Get(name, []byte(key)); err != nil {
					return nil, err
				}
			}
		}
		return readFile(f, names)
	}()
	for _, e := range []error{err, readErr} {
		if e != nil && !errors.Is(e, ErrDamaged) && !errors.Is(e, ErrNoSuchDB) {
			t.Fatalf("an error that is not about damage: %v", e)
		}
	}
	if err == nil {
		err = readErr
	}
	return rep, got, err
}

// bitsThatMatter returns for each byte of a file a mask of bits to flip: all
// bits of the meta pages, headers, node offsets and node heads of the pages in
// use, and a sample of the others.
func bitsThatMatter(file []byte) []byte {
	masks := make([]byte, len(file))
	mark := func(from, n int) {
		for i := range n {
			masks[from+i] = 0xff
		}
	}
	for at := 0; at < len(file); at += 29 {
		masks[at] = 1 << (at % 8)
	}
	mark(0, headerSize+metaSize)
	mark(pageSize, headerSize+metaSize)
	for pgno := firstPage; pgno < len(file)/pageSize; pgno++ {
		at := pgno * pageSize
		b := file[at : at+pageSize]
		flags := le.Uint16(b[10:])
		mark(at, headerSize)
		p, err := parsePage(b, uint64(pgno), flags)
		if err != nil || flags == flagOverflow {
			continue
		}
		for i := range p.n {
			mark(at+headerSize+offsetSize*i, offsetSize)
			mark(at+int(le.Uint16(b[headerSize+offsetSize*i:])), nodeHeader)
			if i == 1 {
				break // the others are like it
			}
		}
	}
	return masks
}

// TestEveryFlippedBit flips the bits of a file that matter, one at a time.
// Either that is found, or all pairs are read and one of them at most has
// changed: the bit is in unused bytes, or in a key or a value. (A value's last
// byte may also come or go with the byte that rounds the node up.)
func TestEveryFlippedBit(t *testing.T) {
	file, want := damageSample(t)
	names := want.names()
	_, got, err := examine(t, file, int64(len(file)), names)
	must(t, err)
	sameContent(t, "undamaged", got, want)

	found, harmless := 0, 0
	for at, bits := range bitsThatMatter(file) {
		for bit := range 8 {
			if bits>>bit&1 == 0 {
				continue
			}
			file[at] ^= 1 << bit
			_, got, err := examine(t, file, int64(len(file)), names)
			file[at] ^= 1 << bit
			if err != nil {
				found++
				continue
			}
			harmless++
			changed := 0
			for _, name := range names {
				if len(got[name]) != len(want[name]) {
					t.Fatalf("byte %d (page %d, %d) bit %d: %s has %d pairs, want %d, and nothing was found",
						at, at/pageSize, at%pageSize, bit, name, len(got[name]), len(want[name]))
				}
				for i, w := range want[name] {
					g := got[name][i]
					if !bytes.Equal(g.key, w.key) || !bytes.Equal(g.value, w.value) {
						changed++
					}
				}
			}
			if changed > 1 {
				t.Fatalf("byte %d (page %d, %d) bit %d: %d pairs changed, and nothing was found", at, at/pageSize, at%pageSize, bit, changed)
			}
		}
	}
	t.Logf("%d flips found, %d in unused bytes, keys or values", found, harmless)
	if found < 1000 || harmless < 1000 {
		t.Error("the test shows less than it should")
	}
}

func TestDamage(t *testing.T) {
	c := content{"kv": sequential(3000, 60, 100), "meta": append(sequential(3, 4, 16), pair{[]byte("big"), bytes.Repeat([]byte("B"), 9000)})}
	file := build(t, c)
	pageOf := func(flags uint16, nth int) int {
		for i := firstPage; i < len(file)/pageSize; i++ {
			if b := file[i*pageSize:]; le.Uint64(b) == uint64(i) && le.Uint16(b[10:]) == flags {
				if nth == 0 {
					return i
				}
				nth--
			}
		}
		t.Fatal("no such page")
		return 0
	}
	leaf, branch, overflow := pageOf(flagLeaf, 5), pageOf(flagBranch, 0), pageOf(flagOverflow, 0)
	pages := len(file) / pageSize
	at := func(f []byte, page, off int) []byte { return f[page*pageSize+off:] }

	for _, tc := range []struct {
		name   string
		damage func(f []byte) []byte
		says   string
	}{
		{"empty file", func(f []byte) []byte { return nil }, "page 0: past the end"},
		{"cut in page 0", func(f []byte) []byte { return f[:100] }, "page 0: past the end"},
		{"cut in page 1", func(f []byte) []byte { return f[:pageSize+100] }, "page 1: past the end"},
		{"cut after the metas", func(f []byte) []byte { return f[:2*pageSize] }, "the file ends after 2 pages"},
		{"cut in the last page", func(f []byte) []byte { return f[:len(f)-1] }, fmt.Sprintf("page %d: in use", pages-1)},
		{"cut by a page", func(f []byte) []byte { return f[:len(f)-pageSize] }, fmt.Sprintf("page %d: in use", pages-1)},
		{"not LMDB", func(f []byte) []byte { return bytes.Repeat([]byte("text"), 4096) }, "page 0: flags"},
		{"other magic", func(f []byte) []byte { f[headerSize] ^= 1; return f }, "magic"},
		{"other version", func(f []byte) []byte { f[headerSize+4] = 2; return f }, "data version 2"},
		{"fixed map", func(f []byte) []byte { f[headerSize+10] = 1; return f }, "page 0: map address"},
		{"environment flags", func(f []byte) []byte { at(f, 1, headerSize+28)[0] |= 1; return f }, "page 1: environment flags"},
		{"page sizes differ", func(f []byte) []byte { at(f, 1, headerSize+25)[0] = 0x20; return f }, "page 1: page size"},
		{"page size odd", func(f []byte) []byte { f[headerSize+24]++; return f }, "page 0: page size"},
		{"zeroed leaf", func(f []byte) []byte { clear(at(f, leaf, 0)[:pageSize]); return f }, fmt.Sprintf("page %d: says", leaf)},
		{"zeroed branch", func(f []byte) []byte { clear(at(f, branch, 0)[:pageSize]); return f }, fmt.Sprintf("page %d: says", branch)},
		{"zeroed overflow", func(f []byte) []byte { clear(at(f, overflow, 0)[:pageSize]); return f }, fmt.Sprintf("page %d: says", overflow)},
		{"swapped leaves", func(f []byte) []byte {
			tmp := bytes.Clone(at(f, leaf, 0)[:pageSize])
			copy(at(f, leaf, 0)[:pageSize], at(f, leaf+1, 0))
			copy(at(f, leaf+1, 0), tmp)
			return f
		}, fmt.Sprintf("page %d: says", leaf)},
		{"swapped leaves, numbers put right", func(f []byte) []byte {
			tmp := bytes.Clone(at(f, leaf, 8)[:pageSize-8])
			copy(at(f, leaf, 8)[:pageSize-8], at(f, leaf+1, 8))
			copy(at(f, leaf+1, 8), tmp)
			return f
		}, "belongs to a later page"},
		{"repeated leaf, number put right", func(f []byte) []byte {
			copy(at(f, leaf+1, 8)[:pageSize-8], at(f, leaf, 8))
			return f
		}, "belongs to an earlier page"},
		{"child is its parent", func(f []byte) []byte { setChild(at(f, branch, 0), 1, uint64(branch)); return f }, fmt.Sprintf("page %d: flags", branch)},
		{"child twice", func(f []byte) []byte {
			setChild(at(f, branch, 0), 1, branchChild(nodeHead(at(f, branch, 0), 0)))
			return f
		}, "page 2: in use twice"},
		{"child is a meta page", func(f []byte) []byte { setChild(at(f, branch, 0), 1, 1); return f }, "page 1: a meta page"},
		{"child past the end", func(f []byte) []byte { setChild(at(f, branch, 0), 1, 1<<40); return f }, "is the last"},
		{"one child", func(f []byte) []byte { le.PutUint16(at(f, branch, 12), headerSize+2); return f }, "one child"},
		{"leaf without nodes", func(f []byte) []byte { le.PutUint16(at(f, leaf, 12), headerSize); return f }, "no nodes"},
		{"a node less", func(f []byte) []byte {
			b := at(f, leaf, 12)
			le.PutUint16(b, le.Uint16(b)-2)
			return f
		}, "no node begins"},
		{"overlapping nodes", func(f []byte) []byte {
			copy(at(f, leaf, headerSize)[:2], at(f, leaf, headerSize+2)[:2])
			return f
		}, "begins where another does"},
		{"short overflow run", func(f []byte) []byte { le.PutUint32(at(f, overflow, 12), 1); return f }, "overflow pages"},
		{"long overflow run", func(f []byte) []byte { le.PutUint32(at(f, overflow, 12), 4); return f }, "in use twice"},
		{"endless overflow run", func(f []byte) []byte { le.PutUint32(at(f, overflow, 12), 1<<32-1); return f }, "is the last"},
		{"leak", func(f []byte) []byte {
			le.PutUint64(at(f, 1, headerSize+120), uint64(pages))
			return append(f, make([]byte, pageSize)...)
		}, fmt.Sprintf("1 pages are neither in use nor free, the first is %d", pages)},
		{"wrong count", func(f []byte) []byte { at(f, 1, headerSize+72+32)[0]++; return f }, "the record says"},
		{"too deep", func(f []byte) []byte { at(f, 1, headerSize+72+6)[0] = 33; return f }, "depth 33"},
		{"a level too many", func(f []byte) []byte { at(f, 1, headerSize+72+6)[0]++; return f }, "flags 0x2, want 0x1"},
		{"forgotten transaction", func(f []byte) []byte { clear(at(f, 1, headerSize+128)[:8]); return f }, "page 1: transaction 0 with last page"},
		{"empty newer transaction", func(f []byte) []byte { f[headerSize+128] = 2; return f }, "page 0: transaction 2 with last page 1"},
		{"transaction in the wrong page", func(f []byte) []byte { at(f, 1, headerSize+128)[0] = 2; return f }, "the other meta page"},
		{"transactions apart", func(f []byte) []byte { at(f, 1, headerSize+128)[0] = 9; return f }, "successive"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.damage(bytes.Clone(file))
			_, err := Check(context.Background(), bytes.NewReader(f), int64(len(f)), nil)
			if err == nil || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("Check: %v\nwant it to say: %s", err, tc.says)
			}
			examine(t, f, int64(len(f)), c.names())
		})
	}
	t.Run("grown", func(t *testing.T) {
		f := append(bytes.Clone(file), make([]byte, 5000)...)
		rep, _, err := examine(t, f, int64(len(f)), c.names())
		if err != nil || rep.Tail != 5000 {
			t.Fatalf("%+v, %v", rep, err)
		}
	})
	t.Run("shorter than it was said to be", func(t *testing.T) {
		examine(t, file[:len(file)/2], int64(len(file)), c.names())
		if _, err := Check(context.Background(), bytes.NewReader(file[:len(file)/2]), int64(len(file)), nil); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
}

func nodeHead(page []byte, i int) uint64 {
	return le.Uint64(page[le.Uint16(page[headerSize+offsetSize*i:]):])
}

func setChild(page []byte, i int, child uint64) {
	node := page[le.Uint16(page[headerSize+offsetSize*i:]):]
	le.PutUint64(node, le.Uint64(node)&^(1<<48-1)|child)
}

// TestFreeListDamage changes the list of free pages.
func TestFreeListDamage(t *testing.T) {
	file, _ := damageSample(t)
	f, err := Open(bytes.NewReader(file), int64(len(file)))
	must(t, err)
	root := f.meta.free.root
	page := file[root*pageSize:][:pageSize]
	p, err := parsePage(page, root, flagLeaf)
	must(t, err)
	l, err := p.leaf(p.n - 1)
	must(t, err)
	if le.Uint64(l.data) < 2 {
		t.Fatalf("the last list has %d pages", le.Uint64(l.data))
	}
	for name, damage := range map[string]func(){
		"count":          func() { l.data[0] = 200 },
		"huge count":     func() { l.data[7] = 200 },
		"page in use":    func() { le.PutUint64(l.data[8:], f.meta.main.root) },
		"page twice":     func() { copy(l.data[8:16], l.data[16:24]) },
		"meta page":      func() { le.PutUint64(l.data[8*le.Uint64(l.data):], 1) },
		"page past last": func() { le.PutUint64(l.data[8:], f.meta.lastPage+1) },
		"one forgotten":  func() { l.data[0]-- },
		"future":         func() { l.key[0] += 8 },
		"transaction 0":  func() { clear(l.key) },
	} {
		t.Run(name, func(t *testing.T) {
			saved := bytes.Clone(file)
			defer copy(file, saved)
			damage()
			if _, err := Check(context.Background(), bytes.NewReader(file), int64(len(file)), nil); !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
		})
	}
}

// FuzzFile changes an environment in several places and reads it: whatever that
// gives, it ends, and an error is about damage.
func FuzzFile(f *testing.F) {
	sample, want := damageSample(f)
	names := want.names()
	f.Add([]byte{})
	f.Add([]byte{0, 0, 16, 1, 0, 16, 128, 3})
	f.Add(sample[:100])
	f.Fuzz(func(t *testing.T, patches []byte) {
		// Each patch is three bytes of position, and one of content.
		file := bytes.Clone(sample)
		for ; len(patches) >= 4; patches = patches[4:] {
			at := int(patches[0])<<16 | int(patches[1])<<8 | int(patches[2])
			file[at%len(file)] = patches[3]
		}
		examine(t, file, int64(len(file)), names)
	})
}

// FuzzBytes reads arbitrary bytes after sound meta pages.
func FuzzBytes(f *testing.F) {
	sample := build(f, content{"kv": sequential(3, 4, 10)})
	f.Add(sample)
	f.Add(sample[2*pageSize:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		examine(t, b, int64(len(b)), []string{"kv"})
		withMetas := append(bytes.Clone(sample[:2*pageSize]), b...)
		examine(t, withMetas, int64(len(withMetas)), []string{"kv"})
	})
}
