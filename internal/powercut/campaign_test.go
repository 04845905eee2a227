package powercut

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/faultfs"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

var (
	cuts = flag.Int("cuts", 150, "power cuts of each campaign")
	seed = flag.Uint64("seed", 1, "of the schedules: the same seed cuts at the same moments")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var dataset = txlog.DatasetID{1, 2, 3}

// recording is a store's life on a tape.
type recording struct {
	tape  *Tape
	marks []mark
	// entries[i] lead from marks[i] to marks[i+1].
	entries [][]txlog.Entry
	final   []byte
}

// mark is a state that was acknowledged when so many events were on the tape.
type mark struct {
	events int
	state  lmdbstore.State
}

// record applies random transactions to a new store and records what LMDB writes.
func record(t testing.TB, seed uint64, transactions int) *recording {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	s, err := lmdbstore.Open(dir, lmdbstore.Options{MapSize: 1 << 20}) // grows on the way
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, err := txlog.Seal(txlog.Pos{}, 1, time.Unix(1000, 0), []txlog.Op{{Kind: txlog.Init, Value: dataset[:]}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply([]txlog.Entry{first}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gen-000001", "data.mdb")
	tape, err := Start(file)
	if err != nil {
		t.Fatal(err)
	}
	r := &recording{tape: tape, marks: []mark{{0, s.State()}}}
	at := first.Pos()
	for range transactions {
		var batch []txlog.Entry
		for range 1 + rng.IntN(6) {
			e, err := txlog.Seal(at, 1, time.Unix(1000+int64(at.Seq), 0), someOps(rng))
			if err != nil {
				t.Fatal(err)
			}
			batch, at = append(batch, e), e.Pos()
		}
		if err := s.Apply(batch); err != nil {
			t.Fatal(err)
		}
		r.entries = append(r.entries, batch)
		r.marks = append(r.marks, mark{tape.Now(), s.State()})
	}
	if err := tape.Stop(); err != nil {
		t.Fatal(err)
	}
	if r.final, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	return r
}

// someOps are puts and deletes of few keys, with values in leaves and in overflow pages.
func someOps(rng *rand.Rand) (ops []txlog.Op) {
	for range 1 + rng.IntN(8) {
		key := fmt.Appendf(nil, "key-%03d", rng.IntN(300))
		switch rng.IntN(8) {
		case 0, 1:
			ops = append(ops, txlog.Op{Kind: txlog.Delete, Key: key})
			continue
		case 2:
			ops = append(ops, txlog.Op{Kind: txlog.Put, Key: key, Value: random(rng, 1<<14)})
		default:
			ops = append(ops, txlog.Op{Kind: txlog.Put, Key: key, Value: random(rng, 300)})
		}
	}
	return ops
}

func random(rng *rand.Rand, most int) []byte {
	b := make([]byte, rng.IntN(most))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// survives opens what a cut after n events left: it must hold a state that was
// acknowledged by then or the next one, wholly, and take what follows.
func (r *recording) survives(dir string, content []byte, n int) error {
	if err := dirOf(dir, content); err != nil {
		return err
	}
	acked := 0
	for i, m := range r.marks {
		if m.events <= n {
			acked = i
		}
	}
	report, err := lmdbstore.Check(context.Background(), dir)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	now := acked
	if now+1 < len(r.marks) && report.State == r.marks[now+1].state {
		now++
	}
	if report.State != r.marks[now].state {
		return fmt.Errorf("it is at %s with the digest %s; acknowledged was %s with %s", report.Pos, report.Digest, r.marks[acked].state.Pos, r.marks[acked].state.Digest)
	}
	s, err := lmdbstore.Open(dir, lmdbstore.Options{})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	for ; now < min(acked+3, len(r.entries)); now++ {
		if err := s.Apply(r.entries[now]); err != nil {
			return errors.Join(fmt.Errorf("apply: %w", err), s.Close())
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	if report, err = lmdbstore.Check(context.Background(), dir); err != nil || report.State != r.marks[now].state {
		return fmt.Errorf("after it went on it is at %s with the digest %s, want %s with %s: %w", report.Pos, report.Digest, r.marks[now].state.Pos, r.marks[now].state.Digest, err)
	}
	return nil
}

// TestStore cuts the power at every point of what LMDB writes.
func TestStore(t *testing.T) {
	done, next, recordings := 0, 0, 0
	for run := *seed; done < *cuts; run++ {
		r := record(t, run, 60)
		recordings++
		for n := 0; n <= r.tape.Len() && done < *cuts; n++ {
			rng := rand.New(rand.NewPCG(run, uint64(n)))
			dir := filepath.Join(t.TempDir(), "store")
			content := r.tape.Cut(n, rng)
			if err := r.survives(dir, content, n); err != nil {
				t.Fatalf("seed %d, power cut after event %d of %s: %v", run, n, r.tape, err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			done++
		}
		next = r.tape.Len()
	}
	t.Logf("%d power cuts in %d recordings, the last of %d events: no acknowledged transaction was lost", done, recordings, next)
}

var errCut = errors.New("power cut")

// TestLog cuts the power in the middle of a log's life, again and again.
func TestLog(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 2))
	files := faultfs.New()
	var acked []txlog.Hash // of the entries from 1 on
	trimmed, opened := uint64(0), 0
	for done := 0; done < *cuts; {
		files.Inject(faultfs.From(files.Ops()+1+rng.IntN(40), faultfs.Fault{Err: errCut, Applied: rng.IntN(2) == 0, Short: rng.IntN(2000)}))
		err := func() error {
			l, err := txlog.Open("log", txlog.Options{FS: files, SegmentBytes: 4 << 10})
			if err != nil {
				return err
			}
			defer l.Close()
			opened++
			if err := holds(l, acked, trimmed); err != nil {
				t.Fatalf("seed %d, after %d power cuts: %v", *seed, done, err)
			}
			// What was not acknowledged and is there stays.
			acked = acked[:0:0]
			if acked, err = hashes(l, acked); err != nil {
				return err
			}
			if l.Dataset().IsZero() {
				pos, err := l.Create(dataset)
				if err != nil {
					return err
				}
				acked = []txlog.Hash{pos.Hash}
			}
			for range 30 {
				switch rng.IntN(8) {
				case 0:
					upTo := rng.Uint64N(l.Head().Seq + 1)
					trimmed = max(trimmed, upTo)
					if _, err := l.Trim(upTo); err != nil {
						return err
					}
				case 1, 2:
					var batch []txlog.Entry
					at := l.Head()
					for range 1 + rng.IntN(5) {
						e, err := txlog.Seal(at, 1, l.HeadTime(), someOps(rng))
						if err != nil {
							return err
						}
						batch, at = append(batch, e), e.Pos()
					}
					if _, err := l.AppendEntries(batch); err != nil {
						return err
					}
					for _, e := range batch {
						acked = append(acked, e.Hash)
					}
				default:
					pos, err := l.Append(context.Background(), someOps(rng))
					if err != nil {
						return err
					}
					acked = append(acked, pos.Hash)
				}
			}
			return nil
		}()
		if err != nil && !errors.Is(err, errCut) && !errors.Is(err, txlog.ErrFailed) && !errors.Is(err, txlog.ErrClosed) {
			t.Fatalf("seed %d, after %d power cuts: %v", *seed, done, err)
		}
		files = files.AfterPowerCut(rng)
		done++
	}
	if opened < *cuts/2 {
		t.Fatalf("of %d cuts only %d found the log open", *cuts, opened)
	}
	t.Logf("%d power cuts, %d of them after the log was open: no acknowledged entry of %d was lost", *cuts, opened, len(acked))
}

// hashes appends those of a log's entries, from 1 on; what was trimmed is zeros.
func hashes(l *txlog.Log, to []txlog.Hash) ([]txlog.Hash, error) {
	if l.Dataset().IsZero() {
		return to, nil
	}
	for seq := uint64(1); seq < l.First(); seq++ {
		to = append(to, txlog.Hash{})
	}
	for at := l.Base(); at.Seq < l.Head().Seq; {
		r, err := l.Reader(at)
		if err != nil {
			return nil, err
		}
		entries, err := r.Next(context.Background(), 1<<20)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		for _, e := range entries {
			to = append(to, e.Hash)
			at = e.Pos()
		}
	}
	return to, nil
}

// holds compares a log with what it acknowledged.
func holds(l *txlog.Log, acked []txlog.Hash, trimmed uint64) error {
	there, err := hashes(l, nil)
	if errors.Is(err, errCut) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(there) < len(acked) {
		return fmt.Errorf("it ends at entry %d, and entry %d was acknowledged", len(there), len(acked))
	}
	if first := l.First(); len(acked) > 0 && first > trimmed+1 {
		return fmt.Errorf("it begins at entry %d, and was trimmed up to entry %d", first, trimmed)
	}
	for i, hash := range acked {
		if !there[i].IsZero() && !hash.IsZero() && there[i] != hash {
			return fmt.Errorf("entry %d is another than was acknowledged", i+1)
		}
	}
	return nil
}

// TestSmallFiles cuts the power while a file is replaced: node.json, quarantine.json,
// CURRENT, manifests and all the others are written so.
func TestSmallFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 3))
	before, after := 0, 0
	files := faultfs.New()
	was, held := "", false
	for i := range *cuts {
		now := fmt.Sprintf("%d %s", i, random(rng, 5000))
		files.Inject(faultfs.From(files.Ops()+1+rng.IntN(8), faultfs.Fault{Err: errCut, Applied: rng.IntN(2) == 0, Short: rng.IntN(3000)}))
		err := durable.WriteFile(files, "node.json", []byte(now), 0o644)
		files = files.AfterPowerCut(rng)
		text, readErr := read(files, "node.json")
		switch {
		case readErr == nil && text == now:
			after++
		case err == nil:
			t.Fatalf("seed %d, cut %d: the file was replaced, and is not: %v", *seed, i, readErr)
		case readErr == nil && held && text == was, !held && errors.Is(readErr, fs.ErrNotExist):
			before++
			continue
		default:
			t.Fatalf("seed %d, cut %d: there is neither what was nor what was to be: %d bytes, %v", *seed, i, len(text), readErr)
		}
		was, held = now, true
	}
	if before == 0 || after == 0 {
		t.Fatalf("of %d cuts %d left what was and %d what was to be", *cuts, before, after)
	}
	t.Logf("%d power cuts: %d left what was, %d what was to be, all of it", *cuts, before, after)
}

func read(files *faultfs.FS, name string) (string, error) {
	f, err := files.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && size > 0 {
		return "", err
	}
	return string(b), nil
}
