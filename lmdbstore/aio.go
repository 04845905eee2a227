package lmdbstore

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// aioReads is how many reads one system call starts.
const aioReads = 64

// aio starts many direct reads with one system call, and a goroutine waits for all
// of them. Waiting for each page in a system call of its own takes eight times the
// processor time, and keeps one of GOMAXPROCS from those who have work until the
// scheduler notices. io_uring would do the same, but many containers forbid it.
type aio struct {
	ctx   uintptr  // aio_context_t
	event *os.File // is readable when reads have ended
	fd    int      // of event, whose Fd would make reading it block a thread
	of    *os.File
	cbs   [aioReads]iocb
	list  [aioReads]*iocb
	ended [aioReads]ioEvent
}

// iocb and ioEvent are those of linux/aio_abi.h.
type iocb struct {
	data    uint64
	_, _    uint32 // key, rw_flags
	_       uint16 // opcode: 0 is to read
	_       int16  // priority
	fd      uint32
	buf     uint64
	size    uint64
	off     int64
	_       uint64
	flags   uint32
	eventFD uint32
}

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

const iocbFlagResFD = 1

// newAIO returns what reads of, which is open for direct reads.
func newAIO(of *os.File) (*aio, error) {
	a := &aio{of: of}
	if _, _, err := unix.Syscall(unix.SYS_IO_SETUP, aioReads, uintptr(unsafe.Pointer(&a.ctx)), 0); err != 0 {
		return nil, err // not allowed, or there are too many already: fs.aio-max-nr
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		a.destroy()
		return nil, err
	}
	a.fd, a.event = fd, os.NewFile(uintptr(fd), "eventfd")
	return a, nil
}

// read does at most aioReads aligned reads. Those that it cannot do it leaves
// with an N less than their length.
func (a *aio) read(reads []mdbfile.Read) {
	var pinned runtime.Pinner // the kernel writes to the buffers while nothing here refers to them
	defer pinned.Unpin()
	for i := range reads {
		r := &reads[i]
		r.N, r.Err = 0, nil
		pinned.Pin(&r.Buf[0])
		a.cbs[i] = iocb{
			data: uint64(i), fd: uint32(a.of.Fd()), buf: uint64(uintptr(unsafe.Pointer(&r.Buf[0]))),
			size: uint64(len(r.Buf)), off: r.Off, flags: iocbFlagResFD, eventFD: uint32(a.fd),
		}
		a.list[i] = &a.cbs[i]
	}
	started := 0
	for started < len(reads) {
		n, _, err := unix.Syscall(unix.SYS_IO_SUBMIT, a.ctx, uintptr(len(reads)-started), uintptr(unsafe.Pointer(&a.list[started])))
		if err != 0 || n == 0 {
			break
		}
		started += int(n)
	}
	for done := 0; done < started; {
		var count [8]byte
		least := 0
		if _, err := a.event.Read(count[:]); err != nil {
			least = started - done // then by the system call
		}
		n, _, err := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.ctx, uintptr(least), aioReads, uintptr(unsafe.Pointer(&a.ended[0])), 0, 0)
		if err == unix.EINTR {
			continue
		}
		if err != 0 { // which cannot be
			a.destroy() // waits for them
			return
		}
		for _, e := range a.ended[:n] {
			if r := &reads[e.data]; e.res < 0 {
				r.Err = unix.Errno(-e.res)
			} else {
				r.N = int(e.res)
			}
		}
		done += int(n)
	}
	runtime.KeepAlive(a)
}

// destroy waits for reads that are under way.
func (a *aio) destroy() {
	_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, a.ctx, 0, 0) // fails only if it was done before
}

func (a *aio) close() error {
	a.destroy()
	return a.event.Close()
}
