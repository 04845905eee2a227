package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore mints its data.
type fakeStore struct {
	state  lmdbstore.State
	data   []byte
	size   int64 // announced; 0: as long as data
	begins int   // how often the writing starts over
	fail   error // after half of the data
	mints  int
	during func() // half-way
}

func storeAt(seq uint64, size int) *fakeStore {
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seq)})
	rng.Read(data)
	return &fakeStore{
		state: lmdbstore.State{
			Dataset: txlog.DatasetID{1},
			Pos:     txlog.Pos{Seq: seq, Hash: sha256.Sum256(fmt.Append(nil, seq))},
			Time:    time.Unix(int64(seq), 500),
		},
		data: data,
	}
}

func (s *fakeStore) State() lmdbstore.State { return s.state }

func (s *fakeStore) Mint(ctx context.Context, begin func(lmdbstore.SnapshotInfo) (io.Writer, error)) (lmdbstore.SnapshotInfo, error) {
	s.mints++
	info := lmdbstore.SnapshotInfo{State: s.state, Pairs: 7, Size: int64(len(s.data)), Format: lmdbstore.Format}
	if s.size != 0 {
		info.Size = s.size
	}
	for range s.begins {
		w, err := begin(info)
		if err != nil {
			return info, err
		}
		if _, err := w.Write(s.data[:len(s.data)/3]); err != nil {
			return info, err
		}
	}
	w, err := begin(info)
	if err != nil {
		return info, err
	}
	half := len(s.data) / 2
	if _, err := w.Write(s.data[:half]); err != nil {
		return info, err
	}
	if s.during != nil {
		s.during()
	}
	if s.fail != nil {
		return info, s.fail
	}
	_, err = w.Write(s.data[half:])
	return info, err
}

func open(t *testing.T, dir string, o Options) *Repo {
	t.Helper()
	r, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func mint(t *testing.T, r *Repo, s *fakeStore) *Snapshot {
	t.Helper()
	snap, err := r.Mint(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// files returns the directory's listing.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func triple(s *fakeStore) []string {
	n := Name(s.state.Pos)
	return []string{n + ".manifest", n + ".mdb", n + ".torrent"}
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("the directory holds\n %q, want\n %q", got, want)
	}
}

func TestMint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	r := open(t, dir, Options{})
	s := storeAt(10, 3<<20+17)
	s.begins = 2
	var last int64
	snap, err := r.Mint(t.Context(), s, func(done, total int64) {
		if total != int64(len(s.data)) {
			t.Errorf("total %d", total)
		}
		last = done
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != int64(len(s.data)) {
		t.Errorf("progress ended at %d of %d", last, len(s.data))
	}
	wantFiles(t, dir, triple(s)...)
	got, err := os.ReadFile(snap.Path)
	if err != nil || !bytes.Equal(got, s.data) {
		t.Errorf("the file differs from what was minted (%v)", err)
	}
	m := snap.Manifest
	if m.SHA256 != sha256.Sum256(s.data) || m.Size != int64(len(s.data)) || m.Pairs != 7 || m.Pos != s.state.Pos || !m.Time.Equal(s.state.Time) {
		t.Errorf("manifest\n%s", m.Encode())
	}
	if err := snap.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if again := mint(t, r, s); again != snap || s.mints != 1 {
		t.Errorf("minted %d times at one position", s.mints)
	}
	older, newer := mint(t, r, storeAt(9, 100)), mint(t, r, storeAt(11, 100))
	if got := r.List(); !slices.Equal(got, []*Snapshot{newer, snap, older}) {
		t.Errorf("List = %v", got)
	}
	if got, ok := r.Get(m.InfoHash); !ok || got != snap {
		t.Errorf("Get = %v, %t", got, ok)
	}

	// What another manager mints at this position is the same, to the byte.
	other := open(t, t.TempDir(), Options{})
	if twin := mint(t, other, s); !bytes.Equal(twin.Manifest.Encode(), m.Encode()) {
		t.Errorf("manifests differ:\n%s\n%s", twin.Manifest.Encode(), m.Encode())
	}

	if err := r.Remove(older.Manifest.Pos); err != nil {
		t.Error(err)
	}
	if err := r.Remove(older.Manifest.Pos); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	r.Close()
	reopened := open(t, dir, Options{})
	if got := reopened.List(); len(got) != 2 || !bytes.Equal(got[1].Manifest.Encode(), m.Encode()) {
		t.Errorf("after reopening: %v", got)
	}
}

func TestMintAborted(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		spoil func(*fakeStore)
		want  string
	}{
		"store fails":        {func(s *fakeStore) { s.fail = broken }, "broken"},
		"too few bytes":      {func(s *fakeStore) { s.size = int64(len(s.data)) + 1 }, ""},
		"too many bytes":     {func(s *fakeStore) { s.size = int64(len(s.data)) - 1 }, ""},
		"empty store":        {func(s *fakeStore) { s.state = lmdbstore.State{} }, "store is empty"},
		"larger than a disk": {func(s *fakeStore) { s.size = 1 << 60 }, "bytes free"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, Options{})
			s := storeAt(1, 1<<20)
			c.spoil(s)
			if _, err := r.Mint(t.Context(), s, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v", err)
			}
			wantFiles(t, dir)
			if got := r.List(); len(got) != 0 {
				t.Errorf("listed: %v", got)
			}
			mint(t, r, storeAt(2, 1<<20)) // goes on
		})
	}
}

func TestMintCancelled(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, Options{MintRate: 1000})
	s := storeAt(1, 8<<20)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := r.Mint(ctx, s, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	wantFiles(t, dir)

	time.AfterFunc(20*time.Millisecond, func() { r.Close() })
	if _, err := r.Mint(t.Context(), s, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("error after Close: %v", err)
	}
	r.Close()
	wantFiles(t, dir)
	if _, err := r.Mint(t.Context(), s, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("error of a closed repo: %v", err)
	}
	if err := r.Remove(s.state.Pos); !errors.Is(err, ErrClosed) {
		t.Errorf("error of a closed repo: %v", err)
	}
}

func TestMintOneAtATime(t *testing.T) {
	r := open(t, t.TempDir(), Options{})
	s := storeAt(1, 1<<20)
	var running, wg sync.WaitGroup
	running.Add(1)
	release := make(chan struct{})
	s.during = sync.OnceFunc(func() {
		running.Done()
		<-release
	})
	got := make([]*Snapshot, 4)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = r.Mint(t.Context(), s, nil); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Mint(ctx, s, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting with an ended context: %v", err)
	}
	close(release)
	wg.Wait()
	if s.mints != 1 || got[0] == nil || slices.ContainsFunc(got, func(s *Snapshot) bool { return s != got[0] }) {
		t.Errorf("%d mints, %v", s.mints, got)
	}
}

func TestMintRate(t *testing.T) {
	r := open(t, t.TempDir(), Options{MintRate: 20 << 20})
	began := time.Now()
	mint(t, r, storeAt(1, 5<<20)) // 1 MiB at once, 4 at 20 MiB/s
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("5 MiB at 20 MiB/s took %v", took)
	}
}

// fetched puts a snapshot's file where a fetch would.
func fetched(t *testing.T, r *Repo, from *Snapshot, spoil func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(from.Path)
	if err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		data = spoil(data)
	}
	if err := os.WriteFile(r.Partial(&from.Manifest), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAdopt(t *testing.T) {
	s := storeAt(10, 3<<20)
	from := mint(t, open(t, t.TempDir(), Options{}), s)
	for name, c := range map[string]struct {
		spoil  func([]byte) []byte
		change func(*Manifest)
		want   string
	}{
		"sound":               {},
		"cut short":           {spoil: func(b []byte) []byte { return b[:len(b)-1] }, want: "bytes long"},
		"grown":               {spoil: func(b []byte) []byte { return append(b, 0) }, want: "bytes long"},
		"other infohash":      {change: func(m *Manifest) { m.InfoHash[0]++ }, want: "infohash"},
		"other size":          {change: func(m *Manifest) { m.Size++ }, want: "bytes long"},
		"other piece length":  {change: func(m *Manifest) { m.PieceLength *= 2 }, want: "pieces are"},
		"other piece root":    {change: func(m *Manifest) { m.PieceRoot[31]++ }, want: "list of SHA-256s has the root"},
		"of another position": {change: func(m *Manifest) { m.Pos.Seq++ }, want: "is called"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, Options{})
			fetched(t, r, from, c.spoil)
			m := from.Manifest
			if c.change != nil {
				c.change(&m)
			}
			snap, err := r.Adopt(t.Context(), m.Encode(), from.Torrent)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v", err)
				}
				wantFiles(t, dir, Name(s.state.Pos)+".part")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantFiles(t, dir, triple(s)...)
			if err := snap.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			if again, err := r.Adopt(t.Context(), m.Encode(), from.Torrent); again != snap || err != nil {
				t.Errorf("adopting twice: %v, %v", again, err)
			}
		})
	}
}

func TestAdoptRemovesOlderParts(t *testing.T) {
	source, dir := open(t, t.TempDir(), Options{}), t.TempDir()
	older, snap, newer := mint(t, source, storeAt(1, 100)), mint(t, source, storeAt(2, 100)), mint(t, source, storeAt(3, 100))
	r := open(t, dir, Options{})
	for _, s := range []*Snapshot{older, snap, newer} {
		fetched(t, r, s, nil)
	}
	if _, err := r.Adopt(t.Context(), snap.Manifest.Encode(), snap.Torrent); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, append(triple(storeAt(2, 100)), Name(newer.Manifest.Pos)+".part")...)
}

func TestConflict(t *testing.T) {
	r := open(t, t.TempDir(), Options{})
	mint(t, r, storeAt(1, 1000))
	wrong := storeAt(1, 1000)
	wrong.data[0]++
	from := mint(t, open(t, t.TempDir(), Options{}), wrong)
	fetched(t, r, from, nil)
	if _, err := r.Adopt(t.Context(), from.Manifest.Encode(), from.Torrent); !errors.Is(err, ErrConflict) {
		t.Errorf("error %v", err)
	}
}

func TestVerify(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  string
	}{
		"missing":   {os.Remove, "missing"},
		"cut short": {func(p string) error { return os.Truncate(p, 100) }, "bytes long"},
		"altered": {func(p string) error {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("x"), 200_000)
			return errors.Join(err, f.Close())
		}, "1 of 16 pieces are bad, the first at offset 196608"},
	} {
		t.Run(name, func(t *testing.T) {
			snap := mint(t, open(t, t.TempDir(), Options{}), storeAt(1, 1<<20))
			if err := c.spoil(snap.Path); err != nil {
				t.Fatal(err)
			}
			if err := snap.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v", err)
			}
		})
	}
	snap := mint(t, open(t, t.TempDir(), Options{}), storeAt(1, 1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := snap.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestOpenCleansUp(t *testing.T) {
	dir := t.TempDir()
	s := storeAt(10, 1000)
	mint(t, open(t, dir, Options{}), s)
	half := Name(storeAt(11, 1).state.Pos)
	keep := append(triple(s), half+".part", "notes.txt", Name(storeAt(5, 1).state.Pos)+".mdb.damaged")
	for _, name := range append(keep[3:], half+".mint", half+".mdb", half+".torrent", half+".manifest.tmp") {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if r := open(t, dir, Options{}); len(r.List()) != 1 {
		t.Errorf("listed %v", r.List())
	}
	wantFiles(t, dir, keep...)
}

// faulty is a file system whose n-th change of a name, of a file or of a
// directory's durability fails, before or after it took effect.
type faulty struct {
	durable.FS
	n      int
	after  bool
	change int
}

var errFault = errors.New("injected fault")

func (f *faulty) step(do func() error) error {
	f.change++
	if f.change != f.n {
		return do()
	}
	if f.after {
		if err := do(); err != nil {
			return err
		}
	}
	return errFault
}

func (f *faulty) Rename(a, b string) error { return f.step(func() error { return f.FS.Rename(a, b) }) }
func (f *faulty) Remove(a string) error    { return f.step(func() error { return f.FS.Remove(a) }) }
func (f *faulty) SyncDir(a string) error   { return f.step(func() error { return f.FS.SyncDir(a) }) }

func (f *faulty) OpenFile(name string, flag int, perm fs.FileMode) (file durable.File, err error) {
	open := func() (err error) {
		file, err = f.FS.OpenFile(name, flag, perm)
		return err
	}
	if flag&os.O_CREATE == 0 {
		err = open()
	} else if err = f.step(open); err != nil && file != nil {
		file.Close()
	}
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, f}, nil
}

type faultyFile struct {
	durable.File
	fs *faulty
}

func (f *faultyFile) Sync() error { return f.fs.step(f.File.Sync) }
func (f *faultyFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.fs.step(func() error { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

// TestEveryStepFails lets each step of minting, adopting and removing fail. The
// error must be told, nothing half-done may be listed, now or after reopening,
// and a fetched file must not be lost.
func TestEveryStepFails(t *testing.T) {
	s := storeAt(10, 200<<10)
	from := mint(t, open(t, t.TempDir(), Options{}), s)
	for _, verb := range []string{"mint", "adopt", "remove"} {
		for _, after := range []bool{false, true} {
			for n := 1; ; n++ {
				dir := t.TempDir()
				fsys := &faulty{FS: durable.OS, after: after}
				r, err := Open(dir, Options{FS: fsys})
				if err != nil {
					t.Fatal(err)
				}
				if verb != "mint" {
					fetched(t, r, from, nil)
				}
				if verb == "remove" {
					if _, err := r.Adopt(t.Context(), from.Manifest.Encode(), from.Torrent); err != nil {
						t.Fatal(err)
					}
				}
				fsys.change, fsys.n = 0, n
				switch verb {
				case "mint":
					_, err = r.Mint(t.Context(), s, nil)
				case "adopt":
					_, err = r.Adopt(t.Context(), from.Manifest.Encode(), from.Torrent)
				case "remove":
					err = r.Remove(s.state.Pos)
				}
				reached := fsys.change >= n
				listed := len(r.List())
				r.Close()
				where := fmt.Sprintf("%s, step %d, after %t", verb, n, after)
				if !reached {
					if err != nil {
						t.Errorf("%s: %v", where, err)
					}
					if n < 4 {
						t.Errorf("%s: only %d steps", verb, n-1)
					}
					break
				}
				if err == nil && listed == 0 && verb != "remove" {
					t.Errorf("%s: no error and no snapshot", where)
				}
				if err != nil && listed != 0 {
					t.Errorf("%s: %v, but listed", where, err)
				}
				again := open(t, dir, Options{})
				for _, found := range again.List() {
					if err := found.Verify(t.Context()); err != nil {
						t.Errorf("%s: listed after reopening: %v", where, err)
					}
				}
				if verb == "adopt" {
					if _, err := again.Adopt(t.Context(), from.Manifest.Encode(), from.Torrent); err != nil {
						t.Errorf("%s: cannot adopt again: %v", where, err)
					}
				}
				for _, name := range files(t, dir) {
					if strings.HasSuffix(name, ".damaged") || strings.HasSuffix(name, ".mint") {
						t.Errorf("%s: left %s", where, name)
					}
				}
				again.Close()
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Options{}); err == nil {
		t.Error("opened a file")
	}
	if _, err := Open(t.TempDir(), Options{MintRate: -1}); err == nil {
		t.Error("accepted a negative rate")
	}
}
