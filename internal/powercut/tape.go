package powercut

// #include <stdlib.h>
// #include "tape.h"
import "C"

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"github.com/qs-peer/qs-peer/internal/faultfs"
)

// Tape is what C code did to a file. One at a time can be recorded.
type Tape struct {
	base   []byte
	events []event
}

// event is a write, or (without data) the sync of all before it.
type event struct {
	faultfs.Change
	synced bool // of the write itself (O_DSYNC)
}

func (e *event) isSync() bool { return e.Data == nil }

// Start begins to record what C code in this process writes to a file, which nobody
// writes to at the moment and whose content is on the disk.
func Start(path string) (*Tape, error) {
	base, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	C.tape_start(C.ulonglong(st.Dev), C.ulonglong(st.Ino))
	return &Tape{base: base}, nil
}

// Now returns how many events are on the tape that is being recorded.
func (t *Tape) Now() int { return int(C.tape_count()) }

// Stop ends the recording.
func (t *Tape) Stop() error {
	var list *C.struct_tape_event
	var n C.size_t
	lost := C.tape_stop(&list, &n)
	defer C.free(unsafe.Pointer(list))
	for _, e := range unsafe.Slice(list, int(n)) {
		if e.off < 0 {
			t.events = append(t.events, event{})
			continue
		}
		data := C.GoBytes(unsafe.Pointer(e.data), C.int(e.len))
		C.free(unsafe.Pointer(e.data))
		t.events = append(t.events, event{Change: faultfs.Change{Off: int64(e.off), Data: data}, synced: e.synced != 0})
	}
	if lost != 0 {
		return errors.New("the tape has a gap: memory ran out")
	}
	return nil
}

// Len returns the number of events: writes and syncs.
func (t *Tape) Len() int { return len(t.events) }

// String counts what is on the tape.
func (t *Tape) String() string {
	var writes, syncs, bytes int
	for _, e := range t.events {
		if e.isSync() {
			syncs++
			continue
		}
		writes++
		bytes += len(e.Data)
	}
	return fmt.Sprintf("%d writes of %d bytes, %d syncs", writes, bytes, syncs)
}

// Cut returns what the file may hold if the power is cut after the first n events.
// Other draws leave it otherwise. LMDB relies on sectors being written wholly or not at
// all, and so does this.
func (t *Tape) Cut(n int, rng *rand.Rand) []byte {
	durable := slices.Clone(t.base)
	var pending []faultfs.Change
	for _, e := range t.events[:n] {
		switch {
		case e.isSync():
			for _, p := range pending {
				durable = p.Apply(durable)
			}
			pending = pending[:0]
		case e.synced:
			// Alone: what was written before it may still be lost.
			durable = e.Apply(durable)
		default:
			pending = append(pending, e.Change)
		}
	}
	return faultfs.AfterCut(rng, durable, pending, false)
}
