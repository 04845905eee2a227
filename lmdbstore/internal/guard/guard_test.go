package guard

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

const (
	readOnly = 0x20000
	create   = 0x40000
	pairs    = 2000
)

var calls = Calls{Error: func(op string, code Code) error { return fmt.Errorf("%s: code %d", op, code) }}

func key(i int) []byte   { return fmt.Appendf(nil, "key-%05d", i) }
func value(i int) []byte { return fmt.Appendf(nil, "value-%0200d", i) }

// filled returns an environment of pairs, and its data file.
func filled(t *testing.T) (*Env, DBI, string) {
	dir := t.TempDir()
	e, err := calls.Open(dir, Options{DBs: 1, Readers: 32, MapSize: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	txn, err := e.Begin(0)
	if err != nil {
		t.Fatal(err)
	}
	dbi, err := txn.OpenDBI("db", create)
	for i := 0; i < pairs && err == nil; i++ {
		err = txn.Put(dbi, key(i), value(i))
	}
	if err = errors.Join(err, txn.Commit()); err != nil {
		t.Fatal(err)
	}
	return e, dbi, filepath.Join(dir, "data.mdb")
}

// get reads a pair in a transaction of its own.
func get(e *Env, dbi DBI, i int) error {
	txn, err := e.Begin(readOnly)
	if err != nil {
		return err
	}
	defer txn.Abort()
	v, err := txn.Get(dbi, key(i), nil, nil)
	if err == nil && string(v) != string(value(i)) {
		return fmt.Errorf("%s is %q", key(i), v)
	}
	return err
}

func isFault(err error) bool {
	var fault *Fault
	return errors.As(err, &fault)
}

// cutShort leaves of a file only what LMDB looks at first.
func cutShort(t *testing.T, file string) {
	if err := os.Truncate(file, 8192); err != nil {
		t.Fatal(err)
	}
}

// TestCutShort: what a read, a cursor and a write come across behind the end of the
// file is an error of the call.
func TestCutShort(t *testing.T) {
	e, dbi, file := filled(t)
	defer e.Close()
	if err := get(e, dbi, 7); err != nil {
		t.Fatal(err)
	}
	txn, err := e.Begin(readOnly)
	if err != nil {
		t.Fatal(err)
	}
	c, err := txn.OpenCursor(dbi)
	if err != nil {
		t.Fatal(err)
	}
	cutShort(t, file)
	if _, err := txn.Get(dbi, key(7), nil, nil); !isFault(err) || !strings.Contains(err.Error(), "bus error") {
		t.Errorf("get: %v", err)
	}
	if _, _, err := c.Get(nil, 0); !isFault(err) {
		t.Errorf("a cursor: %v", err)
	}
	if _, _, _, err := txn.Around(dbi, key(7), nil); !isFault(err) {
		t.Errorf("around: %v", err)
	}
	if err := errors.Join(c.Close(), txn.Abort()); err != nil {
		t.Errorf("the end: %v", err)
	}
	before := Kept()
	if err := e.Close(); err != nil || Kept() != before {
		t.Errorf("close after reads: %v, %d more are kept", err, Kept()-before)
	}
}

// TestInDoubt: an environment in which a write transaction stopped is given up, once,
// and nothing calls LMDB with it any more.
func TestInDoubt(t *testing.T) {
	e, dbi, file := filled(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	txn, err := e.Begin(0)
	if err != nil {
		t.Fatal(err)
	}
	cutShort(t, file)
	if err := txn.Put(dbi, key(7), value(8)); !isFault(err) {
		t.Errorf("put: %v", err)
	}
	before := Kept()
	for range 3 {
		if err := e.Close(); !isFault(err) {
			t.Errorf("close: %v", err)
		}
	}
	if n := Kept() - before; n != 1 {
		t.Errorf("%d environments are kept", n)
	}
	if _, err := e.Begin(readOnly); !isFault(err) {
		t.Errorf("begin: %v", err)
	}
	if _, err := e.Info(); !isFault(err) {
		t.Errorf("info: %v", err)
	}
	if _, err := e.CheckReaders(); !isFault(err) {
		t.Errorf("check readers: %v", err)
	}
}

// TestFaultsBesideOthers: many threads read one environment that is cut short, and one
// that is sound, and each comes back where it belongs; a write transaction that is
// open on the same thread meanwhile is none the worse.
func TestFaultsBesideOthers(t *testing.T) {
	bad, badDBI, file := filled(t)
	defer bad.Close()
	good, dbi, _ := filled(t)
	defer good.Close()
	cutShort(t, file)
	var faults, reads atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 300 {
				if err := get(bad, badDBI, i); isFault(err) {
					faults.Add(1)
				} else {
					t.Errorf("cut short: %v", err)
				}
				if err := get(good, dbi, (i*8+worker)%1000); err != nil {
					t.Errorf("sound: %v", err)
				}
				reads.Add(1)
			}
		})
	}
	wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for i := 1000; i < 1100; i++ {
			txn, err := good.Begin(0)
			if err != nil {
				t.Error(err)
				return
			}
			err = txn.Put(dbi, key(i), value(i+1))
			if fault := get(bad, badDBI, i); !isFault(fault) {
				t.Errorf("cut short: %v", fault)
			}
			if err = errors.Join(err, txn.Commit()); err != nil {
				t.Error(err)
			}
		}
		runtime.GC()
	})
	wg.Wait()
	if faults.Load() != 2400 || reads.Load() != 2400 {
		t.Errorf("%d faults, %d reads; want 2,400 of each", faults.Load(), reads.Load())
	}
	for i := 1000; i < 1100; i++ {
		if err := get(good, dbi, i); err == nil || !strings.Contains(err.Error(), string(value(i+1))) {
			t.Fatalf("what was written: %v", err)
		}
	}
}

// outside reads behind the end of a file that Go mapped.
func outside(dir string) byte {
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		panic(err)
	}
	f, err := os.Open(file)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, 8192, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return mem[5000]
}

// TestGoFaults: a fault that is not from within a call of LMDB's stays Go's, whether
// it is a nil pointer, a fault that a goroutine wants to know of, or the end of the
// process.
func TestGoFaults(t *testing.T) {
	if dir := os.Getenv("QS_GUARD_FAULT"); dir != "" {
		install()
		outside(dir)
		return
	}
	e, dbi, file := filled(t)
	defer e.Close()
	cutShort(t, file)
	caught := func(do func()) (what any) {
		defer func() { what = recover() }()
		do()
		return nil
	}
	for range 3 {
		if err := get(e, dbi, 7); !isFault(err) {
			t.Errorf("get: %v", err)
		}
		var nothing *int
		if err, ok := caught(func() { *nothing++ }).(runtime.Error); !ok || !strings.Contains(err.Error(), "nil pointer") {
			t.Errorf("a nil pointer: %v", err)
		}
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		if err, ok := caught(func() { outside(t.TempDir()) }).(runtime.Error); !ok || !strings.Contains(err.Error(), "address") {
			t.Errorf("behind the end of a file: %v", err)
		}
	}
	child := exec.Command(os.Args[0], "-test.run=^TestGoFaults$")
	child.Env = append(os.Environ(), "QS_GUARD_FAULT="+t.TempDir())
	out, err := child.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "unexpected fault address") || !strings.Contains(string(out), "SIGBUS") {
		t.Errorf("a fault that nobody wants to know of: %v, %s", err, out)
	}
}
