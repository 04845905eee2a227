package txlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/faultfs"
)

func TestFullDisk(t *testing.T) {
	fs := faultfs.New()
	l := created(t, "log", Options{FS: fs, SegmentBytes: minSegmentBytes})
	before := appendN(t, l, 5, 700)
	for _, room := range []int64{0, 1, markSize, 100, 500} {
		fs.SetSpace(room)
		for range 3 {
			if _, err := l.Append(t.Context(), put("key", string(make([]byte, 700)))); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrFailed) {
				t.Fatalf("with %d bytes of room: %v", room, err)
			}
		}
		if l.Head() != before[4] {
			t.Fatalf("head is %v", l.Head())
		}
	}
	readTo(t, l, Pos{}, l.Head().Seq)
	fs.SetSpace(250)
	small := appendN(t, l, 1, 10)
	fs.SetSpace(-1)
	last := appendN(t, l, 20, 700) // over several segments
	fs.SetSpace(0)
	if err := l.Reset(testID, last[3]); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	fs.SetSpace(-1)
	appendN(t, l, 1, 10)
	must(t, l.Close())
	left := fs.AfterPowerCut(rand.New(rand.NewPCG(1, 1)))
	l = open(t, "log", Options{FS: left})
	all := readTo(t, l, Pos{}, 1+5+1+20+1)
	if all[6].Pos() != small[0] || all[len(all)-1].Pos() != l.Head() {
		t.Fatalf("%v", l.Head())
	}
}

func TestFailedFsyncStopsTheLog(t *testing.T) {
	for name, applied := range map[string]bool{"kept": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			fs := faultfs.New()
			reg := prometheus.NewRegistry()
			l := created(t, "log", Options{FS: fs, Registerer: reg})
			good := appendN(t, l, 3, 10)[2]
			boom := errors.New("boom")
			fs.Inject(failing(faultfs.Sync, faultfs.Fault{Err: boom, Applied: applied}))
			for range 2 {
				_, err := l.Append(t.Context(), put("key", "lost"))
				if !errors.Is(err, ErrFailed) || !errors.Is(err, boom) {
					t.Fatal(err)
				}
				fs.Inject(nil)
			}
			if err := l.Reset(testID, good); !errors.Is(err, ErrFailed) {
				t.Fatal(err)
			}
			if got := readTo(t, l, Pos{}, good.Seq); got[3].Pos() != good || l.Head() != good {
				t.Fatal("reads do not go on")
			}
			must(t, l.Close())
			l = open(t, "log", Options{FS: fs, Registerer: reg})
			if l.Head() != good {
				t.Fatalf("head is %v, want %v: the page cache kept what the disk may not have", l.Head(), good)
			}
			appendN(t, l, 2, 10)
		})
	}
}

// TestRefusedWriteStaysGone: what a failed write left behind the last
// acknowledged byte, which may be whole entries, does not come back.
func TestRefusedWriteStaysGone(t *testing.T) {
	for seed := range uint64(200) {
		fs := faultfs.New()
		l := created(t, "log", Options{FS: fs})
		good := appendN(t, l, 3, 10)[2]
		fs.Inject(failing(faultfs.Write, faultfs.Fault{Err: syscall.ENOSPC, Applied: true}))
		if _, err := l.Append(t.Context(), put("key", "refused")); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		fs.Inject(nil)
		left := fs.AfterPowerCut(rand.New(rand.NewPCG(seed, 3)))
		if l := open(t, "log", Options{FS: left}); l.Head() != good {
			t.Fatalf("seed %d: head is %v, want %v", seed, l.Head(), good)
		}
	}
}

// TestSeekAfterRefusedWrite: where the entries of a failed write would have been
// says nothing of those that take their numbers.
func TestSeekAfterRefusedWrite(t *testing.T) {
	fs := faultfs.New()
	l := created(t, "log", Options{FS: fs})
	var refused []Entry
	at := l.Head()
	for range 4 {
		e, err := Seal(at, writerEpoch, time.Now(), put("key", string(make([]byte, indexStep))))
		must(t, err)
		refused, at = append(refused, e), e.Pos()
	}
	fs.Inject(failing(faultfs.Write, faultfs.Fault{Err: syscall.ENOSPC}))
	if _, err := l.AppendEntries(refused); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	fs.Inject(nil)
	for _, p := range appendN(t, l, 10, 10)[:9] {
		if got := readTo(t, l, p, l.Head().Seq); got[0].Seq != p.Seq+1 {
			t.Fatalf("after %v comes %v", p, got[0].Pos())
		}
	}
}

// TestNamesCountOnceTheyAreSynced: a segment whose name could not be made
// durable is found at the next Open, and what is appended to it then must not
// get lost with the name.
func TestNamesCountOnceTheyAreSynced(t *testing.T) {
	for seed := range uint64(20) {
		fs := faultfs.New()
		o := Options{FS: fs, SegmentBytes: minSegmentBytes}
		l := created(t, "log", o)
		appendN(t, l, 1, minSegmentBytes)
		fs.Inject(failing(faultfs.SyncDir, faultfs.Fault{Err: syscall.EIO}))
		if _, err := l.Append(t.Context(), put("key", "into the next segment")); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		fs.Inject(nil)
		must(t, l.Close())
		l = open(t, "log", o)
		acked := appendN(t, l, 1, 10)[0]
		left := fs.AfterPowerCut(rand.New(rand.NewPCG(seed, 4)))
		if l := open(t, "log", Options{FS: left}); l.Head() != acked {
			t.Fatalf("seed %d: head is %v, but %v was acknowledged", seed, l.Head(), acked)
		}
	}
}

// unopened opens nothing while err is set.
type unopened struct {
	durable.FS
	err error
}

func (u *unopened) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if u.err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: u.err}
	}
	return u.FS.OpenFile(name, flag, perm)
}

// TestScrubWithoutDescriptors: what can not be opened for want of descriptors is not
// damaged, what the disk lost is.
func TestScrubWithoutDescriptors(t *testing.T) {
	files := &unopened{FS: faultfs.New()}
	l := created(t, "log", Options{FS: files})
	appendN(t, l, 3, 10)
	for _, short := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		files.err = short
		if rep, err := l.Scrub(t.Context(), 0); !errors.Is(err, short) || len(rep.Damaged) > 0 {
			t.Errorf("%v: %+v, %v", short, rep, err)
		}
	}
	for _, lost := range []error{syscall.EIO, syscall.ENOENT} {
		files.err = lost
		if rep, err := l.Scrub(t.Context(), 0); err != nil || len(rep.Damaged) != 1 {
			t.Errorf("%v: %+v, %v", lost, rep, err)
		}
	}
	files.err = nil
	if rep, err := l.Scrub(t.Context(), 0); err != nil || len(rep.Damaged) > 0 || rep.Entries == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// opening calls a function before it opens a file to read it.
type opening struct {
	durable.FS
	read func()
}

func (o *opening) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if flag == os.O_RDONLY && o.read != nil {
		o.read()
	}
	return o.FS.OpenFile(name, flag, perm)
}

// TestScrubWhileTheTailIsSealed: what was the tail when a scrub began, and is sealed with
// others behind it when the scrub comes to it, is not damaged.
func TestScrubWhileTheTailIsSealed(t *testing.T) {
	files := &opening{FS: faultfs.New()}
	l := created(t, "log", Options{FS: files, SegmentBytes: minSegmentBytes})
	for range 3 { // a few sealed segments
		appendN(t, l, 1, 2*minSegmentBytes)
	}
	grown := false
	files.read = func() {
		if !grown {
			grown = true
			for range 3 {
				appendN(t, l, 1, 2*minSegmentBytes)
			}
		}
	}
	rep, err := l.Scrub(t.Context(), 0)
	if err != nil || len(rep.Damaged) > 0 || rep.Segments < 3 || !grown {
		t.Errorf("%d segments, grown %t, %v, %v", rep.Segments, grown, rep.Damaged, err)
	}
}

// failing fails every operation of a kind.
func failing(kind faultfs.Kind, fault faultfs.Fault) func(faultfs.Op) faultfs.Fault {
	return func(op faultfs.Op) faultfs.Fault {
		if op.Kind == kind {
			return fault
		}
		return faultfs.Fault{}
	}
}

func TestUnreadableDisk(t *testing.T) {
	fs := faultfs.New()
	l := created(t, "log", Options{FS: fs, SegmentBytes: minSegmentBytes})
	appendN(t, l, 10, 1000)
	boom := errors.New("unreadable")
	r, err := l.Reader(Pos{})
	must(t, err)
	defer r.Close()
	fs.Inject(failing(faultfs.Read, faultfs.Fault{Err: boom}))
	var corrupt *CorruptError
	if _, err := r.Next(t.Context(), 1); !errors.Is(err, boom) || errors.As(err, &corrupt) {
		t.Fatal(err)
	}
	if _, err := Open("log", Options{FS: fs}); !errors.Is(err, boom) || errors.As(err, &corrupt) {
		t.Fatal(err)
	}
	fs.Inject(nil)
	if got, err := r.Next(t.Context(), 1<<20); err != nil || len(got) == 0 || got[0].Seq != 1 {
		t.Fatal("the reader does not recover:", got, err)
	}
}

// TestScrubTellsDamageFromShortage: what keeps a scrub from reading is no damage,
// and hides none; what the disk lost is.
func TestScrubTellsDamageFromShortage(t *testing.T) {
	first := segmentName(1)
	for name, c := range map[string]struct {
		kind    faultfs.Kind
		err     error
		damaged bool
	}{
		"descriptors":       {faultfs.Open, syscall.EMFILE, false},
		"the system's":      {faultfs.Open, syscall.ENFILE, false},
		"permission":        {faultfs.Open, syscall.EACCES, false},
		"memory":            {faultfs.Read, syscall.ENOMEM, false},
		"gone":              {faultfs.Open, syscall.ENOENT, true},
		"unreadable":        {faultfs.Read, syscall.EIO, true},
		"the file system's": {faultfs.Read, syscall.EBADMSG, true},
	} {
		for _, repair := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, repair=%t", name, repair), func(t *testing.T) {
				files := faultfs.New()
				told := 0
				l := created(t, "log", Options{FS: files, SegmentBytes: minSegmentBytes, Repair: repair, Damaged: func(Damage) { told++ }})
				appendN(t, l, 20, 1000)
				before, err := files.ReadDir("log")
				must(t, err)
				files.Inject(func(op faultfs.Op) faultfs.Fault {
					if op.Kind == c.kind && filepath.Base(op.Name) == first {
						return faultfs.Fault{Err: c.err}
					}
					return faultfs.Fault{}
				})
				rep, err := l.Scrub(t.Context(), 0)
				files.Inject(nil)
				if c.damaged {
					if err != nil || len(rep.Damaged) != 1 || rep.Damaged[0].Segment != first || told != 1 {
						t.Fatalf("%+v, %v, told %d times", rep, err, told)
					}
					return
				}
				var corrupt *CorruptError
				if !errors.Is(err, c.err) || errors.As(err, &corrupt) || len(rep.Damaged) != 0 || told != 0 {
					t.Fatalf("%+v, %v, told %d times", rep, err, told)
				}
				st := l.snapshot()
				if n := len(st.all()); rep.Segments != n-1 {
					t.Errorf("of %d segments it read %d", n, rep.Segments)
				}
				after, err := files.ReadDir("log")
				if err != nil || len(after) != len(before) || len(l.Holes()) != 0 || l.First() != 1 {
					t.Fatal("it was set aside", after, err)
				}
				if rep, err := l.Scrub(t.Context(), 0); err != nil || len(rep.Damaged) != 0 {
					t.Fatalf("with the shortage over: %+v, %v", rep, err)
				}
			})
		}
	}
}

// TestRandomLives drives logs by random operations with random faults and
// compares with a model, through restarts and power cuts.
func TestRandomLives(t *testing.T) {
	lives := 80
	if testing.Short() {
		lives = 20
	}
	for seed := range uint64(lives) {
		rng := rand.New(rand.NewPCG(seed, 42))
		fs := faultfs.New()
		h := history{acked: map[uint64]Hash{}}
		now := time.Unix(1000, 0)
		o := Options{FS: fs, SegmentBytes: minSegmentBytes, Now: func() time.Time {
			now = now.Add(time.Duration(rng.IntN(5)-2) * time.Second) // goes back, too
			return now
		}}
		reopen := func(l *Log) *Log {
			fs.Inject(nil)
			if l != nil {
				must(t, l.Close())
			}
			l, err := Open("log", o)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := h.check(l); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			return l
		}
		l := reopen(nil)
		_, err := l.Create(testID)
		must(t, err)
		h.dataset, h.head, h.acked[1] = testID, 1, l.Head().Hash
		for range 60 {
			if rng.IntN(3) == 0 {
				fault := faultfs.Fault{Err: syscall.ENOSPC, Short: rng.IntN(3000)}
				if rng.IntN(4) == 0 {
					fault = faultfs.Fault{Err: syscall.EIO, Applied: rng.IntN(2) == 0}
				}
				fs.Inject(faultfs.At(fs.Ops()+1+rng.IntN(6), fault))
			}
			var err error
			switch rng.IntN(12) {
			case 0:
				h.trimmed = max(h.trimmed, rng.Uint64N(l.Head().Seq+1))
				_, err = l.Trim(h.trimmed)
			case 1:
				l = reopen(l)
			case 2:
				must(t, l.Close())
				fs = fs.AfterPowerCut(rng)
				o.FS = fs
				l = reopen(nil)
			case 3:
				fs.Inject(nil) // what follows from a failure here is in TestOneFaultAtEveryStep
				base := Pos{Seq: 1 + rng.Uint64N(l.Head().Seq+10), Hash: Hash{byte(rng.Uint32())}}
				must(t, l.Reset(testID, base))
				h = history{dataset: testID, base: base.Seq, head: base.Seq, trimmed: base.Seq, acked: map[uint64]Hash{}}
			case 4, 5:
				var entries []Entry
				at := l.Head()
				for range 1 + rng.IntN(8) {
					e, err := Seal(at, 2, now, put("sealed", string(make([]byte, rng.IntN(1000)))))
					must(t, err)
					entries, at = append(entries, e), e.Pos()
				}
				if _, err = l.AppendEntries(entries); err == nil {
					for _, e := range entries {
						h.ack(e.Pos())
					}
				}
			default:
				var p Pos
				if p, err = l.Append(context.Background(), put("key", string(make([]byte, rng.IntN(2500))))); err == nil {
					h.ack(p)
				}
			}
			if errors.Is(err, ErrFailed) {
				l = reopen(l)
			}
			if err := h.check(l); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		must(t, l.Close())
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	now := time.Unix(5000, 7)
	o := Options{SegmentBytes: minSegmentBytes, Now: func() time.Time { return now }}
	dir := t.TempDir()
	l := created(t, dir, o)
	appendN(t, l, 10, 1000)
	now = time.Unix(100, 0)
	appendN(t, l, 5, 1000)
	must(t, l.Close())
	l = open(t, dir, o)
	appendN(t, l, 5, 1000)
	if !l.HeadTime().Equal(time.Unix(5000, 7)) {
		t.Fatal(l.HeadTime())
	}
	for _, e := range readTo(t, l, Pos{}, l.Head().Seq) {
		if !e.Time.Equal(time.Unix(5000, 7)) {
			t.Fatal(e.Seq, e.Time)
		}
	}
}

func TestOptions(t *testing.T) {
	if _, err := Open(t.TempDir(), Options{SegmentBytes: 100}); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	l := created(t, t.TempDir(), Options{Registerer: reg})
	if _, err := Open(t.TempDir(), Options{Registerer: reg}); err == nil {
		t.Fatal("two logs share metrics")
	}
	appendN(t, l, 3, 10)
	families, err := reg.Gather()
	must(t, err)
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	for name, want := range map[string]float64{
		"qs_log_entries_appended_total": 3, "qs_log_fsync_seconds": 3, "qs_log_fsync_entries": 3, "qs_log_segments": 1,
		"qs_log_head_seq": 4, "qs_log_first_seq": 1, "qs_log_failed": 0, "qs_log_size_bytes": float64(l.Bytes()),
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
