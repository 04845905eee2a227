package lmdbstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// ruins are what happens to the files of a store while it reads and writes.
var ruins = []struct {
	name string
	do   func(r *rand.Rand, data *os.File, size int64, lock string) error
}{
	{"cut short", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		return data.Truncate(r.Int64N(size))
	}},
	{"emptied", func(_ *rand.Rand, data *os.File, _ int64, _ string) error { return data.Truncate(0) }},
	{"cut short and grown", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		return errors.Join(data.Truncate(r.Int64N(size)), data.Truncate(size))
	}},
	{"grown", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		_, err := data.WriteAt(noise(r, 10*4096), size)
		return err
	}},
	{"noise in a page", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		_, err := data.WriteAt(noise(r, 4096), page(r, size))
		return err
	}},
	{"noise behind a page's header", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		_, err := data.WriteAt(noise(r, 4080), page(r, size)+16)
		return err
	}},
	{"noise in a page's header", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		_, err := data.WriteAt(noise(r, 6), page(r, size)+10)
		return err
	}},
	{"zeros in a page", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		_, err := data.WriteAt(make([]byte, 4096), page(r, size))
		return err
	}},
	{"two pages swapped", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		a, b := page(r, size), page(r, size)
		var pa, pb [4096]byte
		if _, err := data.ReadAt(pa[:], a); err != nil {
			return err
		}
		if _, err := data.ReadAt(pb[:], b); err != nil {
			return err
		}
		_, err := data.WriteAt(pb[:], a)
		_, err2 := data.WriteAt(pa[:], b)
		return errors.Join(err, err2)
	}},
	{"one bit", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		at := r.Int64N(size)
		var b [1]byte
		if _, err := data.ReadAt(b[:], at); err != nil {
			return err
		}
		b[0] ^= 1 << r.IntN(8)
		_, err := data.WriteAt(b[:], at)
		return err
	}},
	{"noise in a meta page", func(r *rand.Rand, data *os.File, _ int64, _ string) error {
		_, err := data.WriteAt(noise(r, 136), int64(r.IntN(2)*4096+16))
		return err
	}},
	{"zeros in both meta pages", func(_ *rand.Rand, data *os.File, _ int64, _ string) error {
		_, err := data.WriteAt(make([]byte, 8192), 0)
		return err
	}},
	{"a hundred pages of noise", func(r *rand.Rand, data *os.File, size int64, _ string) error {
		for range 100 {
			if _, err := data.WriteAt(noise(r, 4096), page(r, size)); err != nil {
				return err
			}
		}
		return nil
	}},
	{"lock file emptied", func(_ *rand.Rand, _ *os.File, _ int64, lock string) error { return os.Truncate(lock, 0) }},
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// page returns the offset of a page that is not a meta page.
func page(r *rand.Rand, size int64) int64 { return (2 + r.Int64N(size/4096-2)) * 4096 }

// TestRuins damages the files of stores in other processes, which read and write
// meanwhile. None may die of it, none may say a wrong value. QS_STORE_RUINS is how
// often each damage is tried.
func TestRuins(t *testing.T) {
	times := 1
	if n, err := strconv.Atoi(os.Getenv("QS_STORE_RUINS")); err == nil {
		times = n
	}
	r := seeded(t)
	for _, ruin := range ruins {
		t.Run(ruin.name, func(t *testing.T) {
			count := make(map[string]int)
			for range times {
				seed := r.Uint64()
				dir := t.TempDir()
				c := start(t, "ruin", dir, nil)
				fmt.Fprintf(c.in, "%s\n%d\n", ruin.name, seed)
				out, _ := io.ReadAll(c.out)
				err := c.Wait()
				outcome, detail, _ := strings.Cut(strings.TrimSpace(string(out)), ": ")
				if err != nil || outcome != "noticed" && outcome != "unnoticed" {
					t.Errorf("seed %d: %v: %s", seed, err, out)
					outcome = "died"
				}
				count[outcome]++
				if err == nil {
					survivors(t, dir, seed)
				}
				if times == 1 {
					t.Log(outcome, detail)
				}
			}
			t.Log(count)
		})
	}
}

// survivors opens what the damage left: either it is found, or all is right.
func survivors(t *testing.T, dir string, seed uint64) {
	s, err := Open(dir, Options{Verify: VerifyFull})
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("seed %d: open after it: %v", seed, err)
		}
		return
	}
	defer closed(t, s)
	err = s.View(func(tx *Tx) error {
		return tx.Scan(Range{}, func(k, v []byte) error {
			if !rightValue(string(k), v) {
				return fmt.Errorf("wrong value of %s: %.200s", k, v)
			}
			return nil
		})
	})
	if err != nil {
		t.Errorf("seed %d: after a full verification: %v", seed, err)
	}
}

// ruinedValue is what key holds at version: whoever reads can tell.
func ruinedValue(key string, version int) []byte {
	v := fmt.Appendf(nil, "%s at %d;", key, version)
	return bytes.Repeat(v, 1+len(key)%7*5)
}

func rightValue(key string, value []byte) bool {
	first, _, _ := strings.Cut(string(value), ";")
	_, version, _ := strings.Cut(first, " at ")
	n, err := strconv.Atoi(version)
	return err == nil && bytes.Equal(value, ruinedValue(key, n))
}

func childRuin(dir string) error {
	in := bufio.NewScanner(os.Stdin)
	var lines []string
	for in.Scan() {
		if lines = append(lines, in.Text()); len(lines) == 2 {
			break
		}
	}
	seed, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return err
	}
	outcome, err := ruinedLife(dir, lines[0], seed)
	if err == nil {
		fmt.Println(outcome)
	}
	return err
}

// life is how long a damage may stay unnoticed: it can be where nobody looks.
const life = time.Second

// ruinedLife writes and reads, damages its own file, and goes on until it notices.
func ruinedLife(dir, ruin string, seed uint64) (string, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	s, err := Open(dir, Options{MapSize: 1 << 30, MaxReaders: 8})
	if err != nil {
		return "", err
	}
	const keys = 5000
	key := func(i int) string { return fmt.Sprintf("key-%0*d", 4+i%11, i) }
	h := newHistory()
	if err := s.Apply([]txlog.Entry{h.begin()}); err != nil {
		return "", err
	}
	ops := make([]txlog.Op, keys)
	for i := range ops {
		ops[i] = put(key(i), string(ruinedValue(key(i), 0)))
	}
	for i := 0; i < keys; i += 1000 {
		if err := s.Apply([]txlog.Entry{h.entry(ops[i : i+1000]...)}); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var work sync.WaitGroup
	var wrong sync.Map
	for g := range 3 {
		r := rand.New(rand.NewPCG(seed, uint64(10+g)))
		work.Go(func() {
			var buf []byte
			for ctx.Err() == nil && s.Damage() == nil {
				k := key(r.IntN(keys))
				v, ok, err := s.Get(buf[:0], []byte(k))
				if err == nil && ok && !rightValue(k, v) {
					wrong.Store("get "+k, string(v))
				}
				if err != nil && !errors.Is(err, ErrDamaged) {
					wrong.Store("get "+k, err.Error())
				}
				buf = v
				if r.IntN(20) > 0 {
					continue
				}
				var seen [][2]string
				err = s.View(func(tx *Tx) error {
					return tx.Scan(Range{Start: []byte(key(r.IntN(keys))), Limit: 100, Reverse: r.IntN(2) == 0}, func(k, v []byte) error {
						seen = append(seen, [2]string{string(k), string(v)})
						return nil
					})
				})
				if err != nil && !errors.Is(err, ErrDamaged) {
					wrong.Store("scan", err.Error())
				}
				for _, kv := range seen {
					if err == nil && !rightValue(kv[0], []byte(kv[1])) {
						wrong.Store("scan "+kv[0], kv[1])
					}
				}
			}
		})
	}
	began := make(chan struct{})
	work.Go(func() {
		begin := sync.OnceFunc(func() { close(began) })
		defer begin()
		for version := 1; ctx.Err() == nil; version++ {
			if version == 3 {
				begin()
			}
			ops := make([]txlog.Op, 1+r.IntN(200))
			for i := range ops {
				k := key(r.IntN(keys))
				if ops[i] = put(k, string(ruinedValue(k, version))); r.IntN(4) == 0 {
					ops[i] = del(k)
				}
			}
			if err := s.Apply([]txlog.Entry{h.entry(ops...)}); err != nil {
				if !errors.Is(err, ErrDamaged) {
					wrong.Store("apply", err.Error())
				}
				return
			}
		}
	})
	<-began
	file := filepath.Join(dir, nameOf(1), dataFile)
	data, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	info, err := data.Stat()
	if err != nil {
		return "", err
	}
	at := rand.New(rand.NewPCG(seed, 2))
	for _, what := range ruins {
		if what.name == ruin {
			if err := what.do(at, data, info.Size(), filepath.Join(dir, nameOf(1), lockFile)); err != nil {
				return "", err
			}
		}
	}
	if err := data.Close(); err != nil {
		return "", err
	}
	defer time.AfterFunc(life, cancel).Stop()
	work.Wait()
	outcome := "unnoticed"
	if err := s.Damage(); err != nil {
		outcome = "noticed: " + err.Error()
	}
	var all []string
	wrong.Range(func(k, v any) bool { all = append(all, fmt.Sprintf("%s: %.200s", k, v)); return len(all) < 5 })
	if len(all) > 0 {
		outcome = "wrong: " + strings.Join(all, "; ") + "; " + outcome
	}
	if err := s.Close(); err != nil && !errors.Is(err, ErrDamaged) {
		return "", fmt.Errorf("close after %s: %w", outcome, err)
	}
	return outcome, nil
}
