package lmdbstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

const (
	// diskAlign is what O_DIRECT wants offsets, lengths and addresses to be a
	// multiple of, whatever the disk.
	diskAlign = 4096
	// diskChunk is how much is read at once, at most, and between two looks at
	// the rate.
	diskChunk = 256 << 10
)

// disk reads a file past the page cache, which would show what was written and
// not what became of it, and no faster than it may. What the cache holds and the
// disk not yet is written out first, by the kernel. Where the file system does
// not have direct reads it reads as usual.
type disk struct {
	ctx    context.Context // ends waiting and reading
	plain  *os.File
	direct *os.File // nil: not to be had
	many   *aio     // nil: not to be had
	limit  *rate.Limiter

	indirect atomic.Bool // a direct read was refused
	owed     atomic.Int64
	read     atomic.Int64

	fault func(off int64, n int) error // in tests: what reading n bytes fails with
}

// openDisk opens a file to be read at bytesPerSecond, or as fast as it goes if
// that is not positive.
func openDisk(ctx context.Context, file string, bytesPerSecond int64) (*disk, int64, error) {
	limit := rate.NewLimiter(rate.Inf, 0)
	if bytesPerSecond > 0 {
		limit = rate.NewLimiter(rate.Limit(bytesPerSecond), diskChunk)
		limit.AllowN(time.Now(), diskChunk) // nothing is saved up
	}
	return openDiskAt(ctx, file, limit)
}

// openDiskAt is openDisk at the pace of a limiter, which lets diskChunk bytes through at
// once or has no limit.
func openDiskAt(ctx context.Context, file string, limit *rate.Limiter) (*disk, int64, error) {
	plain, size, err := openFile(file)
	if err != nil {
		return nil, 0, err
	}
	d := &disk{ctx: ctx, plain: plain, limit: limit}
	if d.direct, err = os.OpenFile(file, os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
		d.direct = nil
	} else if d.many, err = newAIO(d.direct); err != nil {
		d.many = nil
	}
	return d, size, nil
}

// isDirect reports whether all that was read came from the disk.
func (d *disk) isDirect() bool { return d.direct != nil && !d.indirect.Load() }

// ReadAt implements io.ReaderAt.
func (d *disk) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		part, err := d.readPart(p[n:min(len(p), n+diskChunk)], off+int64(n))
		n += part
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (d *disk) readPart(p []byte, off int64) (int, error) {
	d.read.Add(int64(len(p)))
	if err := d.pay(len(p)); err != nil {
		return 0, err
	}
	return d.readTwice(p, off)
}

// ReadBatch implements mdbfile.BatchReader. One goroutine at a time may call it.
func (d *disk) ReadBatch(reads []mdbfile.Read) bool {
	if d.many == nil || !d.isDirect() || slices.ContainsFunc(reads, func(r mdbfile.Read) bool { return !isAligned(r.Buf, r.Off) }) {
		return false
	}
	for part := range slices.Chunk(reads, aioReads) {
		n := 0
		for i := range part {
			n += len(part[i].Buf)
		}
		d.read.Add(int64(n))
		if err := d.pay(n); err != nil {
			for i := range part {
				part[i].N, part[i].Err = 0, err
			}
			continue
		}
		d.many.read(part)
		for i := range part {
			r := &part[i]
			if d.fault != nil && r.Err == nil {
				if r.Err = d.fault(r.Off, len(r.Buf)); r.Err != nil {
					r.N = 0
				}
			}
			if r.N < len(r.Buf) { // it failed, or was not begun
				r.N, r.Err = d.readTwice(r.Buf, r.Off)
			}
		}
	}
	return true
}

func (d *disk) readTwice(p []byte, off int64) (int, error) {
	n, err := d.readOnce(p, off)
	if isLost(err) {
		return d.readBlocks(p, off)
	}
	return n, err
}

func (d *disk) readOnce(p []byte, off int64) (int, error) {
	if d.fault != nil {
		if err := d.fault(off, len(p)); err != nil {
			return 0, err
		}
	}
	if d.isDirect() {
		n, err := d.readDirect(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		d.indirect.Store(true) // other rules than any that we know of
	}
	return d.plain.ReadAt(p, off)
}

// readBlocks is the second try of a read, block by block: the block that fails again
// is lost, which is damage.
func (d *disk) readBlocks(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		at := off + int64(n)
		block := p[n:min(len(p), n+diskAlign-int(at&(diskAlign-1)))]
		var got int
		got, err = d.readOnce(block, at)
		n += got
		if isLost(err) {
			err = fmt.Errorf("%w: twice the disk did not return the block at offset %d: %w", ErrDamaged, at&^(diskAlign-1), err)
		}
	}
	return n, err
}

// isLost reports whether err is what reading fails with when the disk lost what is read:
// EUCLEAN and EBADMSG are what file systems say of a checksum that does not match.
// Anything else (no memory, no descriptors) says nothing of the file.
func isLost(err error) bool {
	return slices.ContainsFunc([]error{syscall.EIO, syscall.EUCLEAN, syscall.EBADMSG}, func(e error) bool { return errors.Is(err, e) })
}

// pay waits for what the rate allows, now and then: a timer for each page would
// cost more than reading it.
func (d *disk) pay(n int) error {
	if d.owed.Add(int64(n)) < diskChunk {
		return d.ctx.Err()
	}
	return pay(d.ctx, d.limit, int(d.owed.Swap(0)))
}

func pay(ctx context.Context, limit *rate.Limiter, owed int) error {
	for ; owed > 0; owed -= diskChunk {
		if err := limit.WaitN(ctx, min(owed, diskChunk)); err != nil {
			return cmp.Or(ctx.Err(), context.DeadlineExceeded) // or it would be exceeded
		}
	}
	return nil
}

// bounces are aligned buffers for reads that are not aligned themselves.
var bounces = sync.Pool{New: func() any { b := aligned(diskChunk + 2*diskAlign); return &b }}

func aligned(n int) []byte {
	b := make([]byte, n+diskAlign)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (diskAlign - 1)
	return b[skip : skip+n : skip+n]
}

func isAligned(p []byte, off int64) bool {
	return (uintptr(unsafe.Pointer(&p[0]))|uintptr(len(p))|uintptr(off))&(diskAlign-1) == 0
}

func (d *disk) readDirect(p []byte, off int64) (int, error) {
	if isAligned(p, off) {
		return d.direct.ReadAt(p, off)
	}
	bounce := bounces.Get().(*[]byte)
	defer bounces.Put(bounce)
	skip := int(off & (diskAlign - 1))
	b := (*bounce)[:(skip+len(p)+diskAlign-1)&^(diskAlign-1)]
	n, err := d.direct.ReadAt(b, off-int64(skip))
	if n = copy(p, b[min(skip, n):n]); n == len(p) {
		err = nil
	} else if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (d *disk) close() error {
	err := d.plain.Close()
	if d.many != nil {
		err = errors.Join(err, d.many.close())
	}
	if d.direct != nil {
		err = errors.Join(err, d.direct.Close())
	}
	return err
}
