package lmdbstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/txlog"
)

// childVar says what the test binary does instead of testing: the tests below
// start it as another process.
const childVar = "QS_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childVar); role != "" {
		if err := children[role](os.Args[1]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

var children = map[string]func(dir string) error{
	"apply":  childApply,
	"read":   childRead,
	"hold":   childHold,
	"ulimit": childUlimit,
	"full":   childFull,
	"ruin":   childRuin,

	"crowded":     childCrowded,
	"descriptors": childDescriptors,
}

type child struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, role, dir string, attr *syscall.SysProcAttr) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0], dir)}
	c.Env = append(os.Environ(), childVar+"="+role)
	c.Stderr = os.Stderr
	c.SysProcAttr = attr
	var err error
	if c.in, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.Start(); err != nil {
		if attr != nil {
			t.Skipf("this system lets us make no namespace: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	return c
}

// line returns the child's next line.
func (c *child) line(t *testing.T) string {
	t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the child said %q and then %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (c *child) ask(t *testing.T, question string) string {
	t.Helper()
	if _, err := io.WriteString(c.in, question+"\n"); err != nil {
		t.Fatal(err)
	}
	return c.line(t)
}

// childApply goes on with the golden history and says what was acknowledged.
func childApply(dir string) error {
	s, err := Open(dir, Options{MapSize: minMapBytes})
	if err != nil {
		return err
	}
	entries, _ := goldenHistory()
	for seq := int(s.State().Pos.Seq); seq < len(entries); {
		n := min(1+seq%5, len(entries)-seq)
		if err := s.Apply(entries[seq : seq+n]); err != nil {
			return err
		}
		seq += n
		fmt.Println(seq)
	}
	return s.Close()
}

func TestKilled(t *testing.T) {
	r := seeded(t)
	kills := 30
	if testing.Short() {
		kills = 5
	}
	entries, _ := goldenHistory()
	dir := t.TempDir()
	acked, replayed := 0, newHistory()
	for range kills {
		c := start(t, "apply", dir, nil)
		for want := acked + 1 + r.IntN(2*len(entries)/kills); acked < min(want, len(entries)); {
			n, err := strconv.Atoi(c.line(t))
			if err != nil {
				t.Fatal(err)
			}
			acked = n
		}
		c.Process.Signal(syscall.SIGKILL)
		rest, _ := io.ReadAll(c.out)
		c.Wait()
		if lines := strings.Fields(string(rest)); len(lines) > 0 {
			acked, _ = strconv.Atoi(lines[len(lines)-1])
		}
		report, err := Check(t.Context(), dir)
		if err != nil || report.Pos.Seq < uint64(acked) {
			t.Fatalf("after entry %d was acknowledged: %+v %v", acked, report, err)
		}
		// The kill may have come between a commit and its acknowledgement.
		acked = int(report.Pos.Seq)
		s := open(t, dir, Options{MapSize: minMapBytes})
		for _, e := range entries[replayed.pos.Seq:s.State().Pos.Seq] {
			for _, op := range e.Ops {
				if delete(replayed.model, string(op.Key)); op.Kind == txlog.Put {
					replayed.model[string(op.Key)] = string(op.Value)
				}
			}
			replayed.pos = e.Pos()
		}
		matches(t, s, replayed)
		closed(t, s)
	}
	t.Logf("%d kills, %d of %d entries", kills, acked, len(entries))
}

// childRead answers each key with position and value.
func childRead(dir string) error {
	r, err := OpenReader(dir, ReaderOptions{})
	if err != nil {
		return err
	}
	if _, err := OpenReader(dir, ReaderOptions{}); err == nil {
		return errors.New("the environment is open twice")
	}
	fmt.Println("open")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "close" {
			if err := errors.Join(r.Close(), r.Close()); err != nil {
				return err
			}
			_, _, err := r.Get(nil, []byte("a"))
			fmt.Println(err)
			continue
		}
		value, ok, err := r.Get(nil, in.Bytes())
		if err != nil {
			return err
		}
		err = r.View(func(tx *Tx) error {
			state, err := tx.State()
			fmt.Println(state.Pos.Seq, ok, len(value))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func TestReaderInAnotherProcess(t *testing.T) {
	h := newHistory()
	dir := t.TempDir()
	if _, err := OpenReader(dir, ReaderOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reader of an empty directory: %v", err)
	}
	s := open(t, dir, Options{MapSize: minMapBytes})
	if _, err := OpenReader(dir, ReaderOptions{}); err == nil {
		t.Error("the process that owns the store opened a reader too")
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second store: %v", err)
	}
	if _, err := Check(t.Context(), dir); !errors.Is(err, ErrInUse) {
		t.Errorf("check of an open store: %v", err)
	}
	apply(t, s, h.begin(), h.entry(put("a", "1")))
	c := start(t, "read", dir, nil)
	expect := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("the reader says %q, want %q", got, want)
		}
	}
	expect(c.line(t), "open")
	expect(c.ask(t, "a"), "2 true 1")
	expect(c.ask(t, "b"), "2 false 0")
	for i := range 20 { // far beyond the map that the reader began with
		apply(t, s, h.entry(put("b", strings.Repeat("b", 1000+i)), put(fmt.Sprint(i), strings.Repeat("x", 300_000))))
		expect(c.ask(t, "b"), fmt.Sprint(3+i, " true ", 1000+i))
	}
	if got := s.current.Load().env.mapBytes.Load(); got <= minMapBytes {
		t.Errorf("the map did not grow: %d bytes", got)
	}
	for i := range 5 { // switches
		file := filepath.Join(t.TempDir(), "snapshot.mdb")
		minted(t, s, file)
		g, err := s.Install(t.Context(), file, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, g, h.entry(put("c", strings.Repeat("c", i))))
		if err := g.Activate(); err != nil {
			t.Fatal(err)
		}
		expect(c.ask(t, "c"), fmt.Sprint(h.pos.Seq, " true ", i))
	}
	expect(c.ask(t, "close"), ErrClosed.Error())
	matches(t, s, h)
}

// childHold holds a read transaction until it is killed.
func childHold(dir string) error {
	r, err := OpenReader(dir, ReaderOptions{})
	if err != nil {
		return err
	}
	return r.View(func(*Tx) error {
		fmt.Println("reading")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	})
}

func TestStaleReadersAreCleared(t *testing.T) {
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	apply(t, s, h.begin())
	c := start(t, "hold", dir, nil)
	if got := c.line(t); got != "reading" {
		t.Fatal(got)
	}
	c.Process.Kill()
	c.Wait()
	s.current.Load().env.checked = time.Time{} // as if it had been long ago
	apply(t, s, h.entry(put("a", "1")))
	if got := s.stale.Load(); got != 1 {
		t.Errorf("%d stale readers cleared, want 1", got)
	}
}

// childUlimit opens a store with little address space to spare.
func childUlimit(dir string) error {
	var usage int64
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	fmt.Sscan(string(statm), &usage)
	limit := uint64(usage)*uint64(os.Getpagesize()) + 4<<30
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	s, err := Open(dir, Options{})
	if err != nil {
		return err
	}
	h := newHistory()
	if err := s.Apply([]txlog.Entry{h.begin(), h.entry(put("a", "1"))}); err != nil {
		return err
	}
	fmt.Println(s.current.Load().env.mapBytes.Load())
	return s.Close()
}

func TestLittleAddressSpace(t *testing.T) {
	c := start(t, "ulimit", t.TempDir(), nil)
	said := c.line(t)
	if n, err := strconv.ParseInt(said, 10, 64); err != nil || n < 1<<30 || n > 4<<30 {
		t.Errorf("with 4 GiB to spare the map is %s bytes", said)
	}
}

// childFull fills a small file system of its own.
func childFull(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		fmt.Println("skip:", err)
		return nil
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 5<<20), 0o600); err != nil {
		return err
	}
	s, err := Open(filepath.Join(dir, "store"), Options{})
	if err != nil {
		return err
	}
	h := newHistory()
	if err := s.Apply([]txlog.Entry{h.begin()}); err != nil {
		return err
	}
	before := s.State()
	big := h.entry(put("big", strings.Repeat("b", 4<<20)), put("small", "s"))
	err = s.Apply([]txlog.Entry{big})
	fmt.Println(errors.Is(err, unix.ENOSPC), strings.Contains(fmt.Sprint(err), "no space left on the file system"), err)
	_, found, err := s.Get(nil, []byte("small"))
	fmt.Println(s.State() == before, found, err)
	if err := os.Remove(ballast); err != nil {
		return err
	}
	err = s.Apply([]txlog.Entry{big})
	value, _, getErr := s.Get(nil, []byte("big"))
	fmt.Println(err, len(value), getErr)
	return s.Close()
}

// mounting has a child mount file systems that nobody else sees.
func mounting() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
}

func TestDiskFull(t *testing.T) {
	c := start(t, "full", t.TempDir(), mounting())
	first := c.line(t)
	if strings.HasPrefix(first, "skip:") {
		t.Skip(first)
	}
	if !strings.HasPrefix(first, "true true ") {
		t.Errorf("full: %s", first)
	}
	if got := c.line(t); got != "true false <nil>" {
		t.Errorf("state kept, key found: %s", got)
	}
	if got := c.line(t); got != fmt.Sprintf("<nil> %d <nil>", 4<<20) {
		t.Errorf("with space again: %s", got)
	}
}
