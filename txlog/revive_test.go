package txlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/faultfs"
)

// TestRevive: a log whose disk failed goes on once the disk works again, without
// being closed, with everything that was acknowledged, and so do its readers.
func TestRevive(t *testing.T) {
	for _, fault := range []struct {
		kind    faultfs.Kind
		err     error
		applied bool
	}{
		{faultfs.Sync, syscall.EIO, false}, {faultfs.Sync, syscall.EIO, true}, {faultfs.Sync, syscall.ENOSPC, false},
		{faultfs.Write, syscall.EROFS, false}, {faultfs.Truncate, syscall.EROFS, false},
	} {
		for _, segment := range []int64{minSegmentBytes, defaultSegmentBytes} {
			t.Run(fmt.Sprint(fault.kind, fault.err, fault.applied, segment), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					disk := faultfs.New()
					l := created(t, "log", Options{FS: disk, SegmentBytes: segment})
					good := appendN(t, l, 9, 700)
					r, err := l.Reader(good[3])
					must(t, err)
					defer r.Close()

					failed := false
					disk.Inject(func(op faultfs.Op) faultfs.Fault {
						if op.Kind == fault.kind || fault.err == syscall.EROFS && (op.Kind == faultfs.Write || op.Kind == faultfs.Truncate) {
							failed = true
							return faultfs.Fault{Err: fault.err, Applied: fault.applied}
						}
						return faultfs.Fault{}
					})
					for range 10 {
						if _, err := l.Append(t.Context(), put("key", "refused")); !errors.Is(err, fault.err) && !errors.Is(err, ErrFailed) {
							t.Fatalf("the disk fails, and append says: %v", err)
						}
						time.Sleep(reviveEvery)
					}
					if !failed || l.Head() != good[8] {
						t.Fatalf("failed: %v, head %v", failed, l.Head())
					}
					if got, err := r.Next(t.Context(), 1<<20); err != nil || got[len(got)-1].Pos() != good[8] {
						t.Fatalf("a reader does not go on: %v", err)
					}

					disk.Inject(nil)
					time.Sleep(reviveEvery)
					after := appendN(t, l, 9, 700)
					for at := good[8]; at != after[8]; {
						got, err := r.Next(t.Context(), 1<<20)
						must(t, err)
						at = got[len(got)-1].Pos()
					}
					readTo(t, l, Pos{}, l.Head().Seq)
					// And it is on the disk, not only in the page cache.
					left := disk.AfterPowerCut(rand.New(rand.NewPCG(1, 1)))
					if again := open(t, "log", Options{FS: left, SegmentBytes: segment}); again.Head() != after[8] {
						t.Fatalf("after a power cut the head is %v, want %v", again.Head(), after[8])
					}
				})
			})
		}
	}
}

// TestReviveLosesNothing: a log from which the disk lost what was acknowledged
// does not go on as if it had not been.
func TestReviveLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.New()
		l := created(t, "log", Options{FS: disk})
		good := appendN(t, l, 3, 10)
		disk.Inject(failing(faultfs.Sync, faultfs.Fault{Err: syscall.EIO}))
		if _, err := l.Append(t.Context(), put("key", "refused")); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
		disk.Inject(nil)
		cutLast(t, disk, "log/"+segmentName(1))
		for range 3 {
			time.Sleep(reviveEvery)
			if _, err := l.Append(t.Context(), put("key", "refused")); !errors.Is(err, ErrFailed) {
				t.Fatalf("a log that lost entries takes others in their place: %v", err)
			}
		}
		if l.Head() != good[2] {
			t.Fatalf("head is %v", l.Head())
		}
	})
}

// cutLast takes a file's last byte.
func cutLast(t *testing.T, disk durable.FS, name string) {
	t.Helper()
	f, err := disk.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	must(t, f.Truncate(size-1))
	must(t, f.Close())
}
