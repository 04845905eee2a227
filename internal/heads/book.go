package heads

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/txlog"
)

// Spacing is about how many bytes of log there are between two heads that are
// kept. A follower that catches up has to hold as much back.
const Spacing = 256 << 10

const (
	keptName   = "kept"
	newestName = "newest"

	keptMagic    = "qs-heads"
	keptVersion  = 1
	keptHeader   = 8 + 4
	recordHeader = 4 + 4
	slotSize     = recordHeader + MaxNote

	// syncEvery is the least time between two fsyncs of what is kept.
	syncEvery = time.Second
	// trimAt is how many heads have to be obsolete before the file is rewritten.
	trimAt = 256
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Book is the signed heads that a node keeps of its log. Its methods may be
// called concurrently.
type Book struct {
	dir string
	fs  durable.FS
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	file    durable.File
	slots   durable.File
	end     int64 // of what is kept, in file
	kept    []place
	newest  Signed
	added   time.Time     // when newest was; zero: by an earlier process
	slot    int64         // which one is written next
	since   int64         // bytes of log since the last one kept
	synced  time.Time     // when file was
	dirty   bool          // file was written since
	failing bool          // the last write failed, which was logged
	change  chan struct{} // closed, and replaced, when newest changes
	closed  bool
}

// place is where a head that is kept stands.
type place struct {
	pos  txlog.Pos
	off  int64 // of the note in the file
	size int
	crc  uint32
}

// BookOptions configure a Book. The zero value is ready to use.
type BookOptions struct {
	FS     durable.FS   // default durable.OS
	Logger *slog.Logger // default: discarded
}

// OpenBook opens the book in dir, making it if need be. What is damaged in it is
// dropped. The caller holds a lock on the data directory.
func OpenBook(dir string, o BookOptions) (*Book, error) {
	if o.FS == nil {
		o.FS = durable.OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Book{dir: dir, fs: o.FS, log: o.Logger, change: make(chan struct{}), synced: time.Now()}
	if err := b.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open signed heads in %s: %w", dir, err), b.closeFiles())
	}
	return b, nil
}

func (b *Book) open() (err error) {
	if err := durable.MkdirAll(b.fs, b.dir, 0o750); err != nil {
		return err
	}
	if b.file, err = b.openFile(keptName); err != nil {
		return err
	}
	if b.slots, err = b.openFile(newestName); err != nil {
		return err
	}
	if err := b.loadKept(); err != nil {
		return err
	}
	return b.loadNewest()
}

func (b *Book) openFile(name string) (durable.File, error) {
	return b.fs.OpenFile(filepath.Join(b.dir, name), os.O_RDWR|os.O_CREATE, 0o640)
}

// loadKept reads what is kept up to the first record that is not sound.
func (b *Book) loadKept() error {
	content, err := readAll(b.file)
	if err != nil {
		return err
	}
	if !keptBegins(content) {
		if len(content) > 0 {
			b.log.Warn("the signed heads that were kept are damaged; beginning anew", "bytes", len(content))
		}
		return b.begin()
	}
	off, err := eachKept(content, func(h Signed, off int64) {
		b.kept = append(b.kept, place{h.Pos, off, len(h.Note), crc32.Checksum(h.Note, castagnoli)})
		b.newest = Signed{h.Head, slices.Clone(h.Note)}
	})
	if err != nil {
		return err
	}
	if rest := int64(len(content)) - off; rest > 0 {
		b.log.Warn("signed heads that were kept are damaged; dropping them", "heads_left", len(b.kept), "bytes_dropped", rest)
		if err := b.file.Truncate(off); err != nil {
			return err
		}
	}
	b.end = off
	return nil
}

func keptBegins(content []byte) bool {
	return len(content) >= keptHeader && string(content[:8]) == keptMagic
}

// eachKept calls fn with the heads in a file of those that are kept, in order, and with
// where their notes stand, up to the first record that is not sound, and returns
// where that is.
func eachKept(content []byte, fn func(h Signed, off int64)) (end int64, err error) {
	if v := binary.LittleEndian.Uint32(content[8:]); v != keptVersion {
		return 0, fmt.Errorf("%s has version %d; this program knows %d", keptName, v, keptVersion)
	}
	end = keptHeader
	for last := uint64(0); ; {
		note, ok := record(content[end:])
		if !ok {
			return end, nil
		}
		h, err := read(note)
		if err != nil || last > 0 && h.Pos.Seq <= last {
			return end, nil
		}
		fn(h, end+recordHeader)
		last = h.Pos.Seq
		end += recordHeader + int64(len(note))
	}
}

// loadNewest takes the newer of the slots, unless the last one kept is newer.
func (b *Book) loadNewest() error {
	content, err := readAll(b.slots)
	if err != nil {
		return err
	}
	for i := range int64(2) {
		if h, ok := inSlot(content, i); ok && newer(h, b.newest) {
			b.newest, b.slot = Signed{h.Head, slices.Clone(h.Note)}, 1-i
		}
	}
	return nil
}

// inSlot returns the head in a slot of a file of the newest ones.
func inSlot(content []byte, slot int64) (h Signed, ok bool) {
	note, ok := record(content[min(slot*slotSize, int64(len(content))):])
	if !ok {
		return Signed{}, false
	}
	h, err := read(note)
	return h, err == nil
}

// newer reports whether a says more than b of where the log is.
func newer(a, b Signed) bool {
	return a.Pos.Seq > b.Pos.Seq || a.Pos.Seq == b.Pos.Seq && a.Time.After(b.Time)
}

func readAll(f durable.File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	content := make([]byte, size)
	if _, err := f.ReadAt(content, 0); err != nil && size > 0 {
		return nil, err
	}
	return content, nil
}

// record returns the note at the beginning of b, if one is there and sound.
func record(b []byte) (note []byte, ok bool) {
	if len(b) < recordHeader {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > MaxNote || int(n) > len(b)-recordHeader {
		return nil, false
	}
	note = b[recordHeader : recordHeader+n]
	return note, crc32.Checksum(note, castagnoli) == binary.LittleEndian.Uint32(b[4:])
}

func appendRecord(b, note []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(note)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(note, castagnoli))
	return append(b, note...)
}

// begin drops everything that is kept.
func (b *Book) begin() error {
	b.kept, b.end, b.since = nil, keptHeader, 0
	if err := b.file.Truncate(0); err != nil {
		return err
	}
	_, err := b.file.WriteAt(binary.LittleEndian.AppendUint32([]byte(keptMagic), keptVersion), 0)
	return err
}

// Add takes a verified head, of a log that grew by so many bytes since the last
// one. It is kept if it is time to. A head that is not newer is left out, and
// one of another dataset begins the book anew.
//
// A failed write is logged, not returned: nothing depends on what is kept.
func (b *Book) Add(h Signed, grown int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	if !b.newest.Dataset.IsZero() && b.newest.Dataset != h.Dataset {
		b.newest = Signed{}
		b.report(b.begin())
	}
	b.since += grown
	if b.since >= Spacing {
		b.keep(h)
	}
	if !newer(h, b.newest) {
		return
	}
	b.newest, b.added = h, time.Now()
	close(b.change)
	b.change = make(chan struct{})
	_, err := b.slots.WriteAt(appendRecord(nil, h.Note), b.slot*slotSize)
	b.slot = 1 - b.slot
	b.report(err)
}

// Keep keeps a verified head, whatever the log grew. Heads come in order: one
// that is not behind the last is left out.
func (b *Book) Keep(h Signed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.keep(h)
	}
}

func (b *Book) keep(h Signed) {
	if n := len(b.kept); n > 0 && h.Pos.Seq <= b.kept[n-1].pos.Seq {
		return
	}
	rec := appendRecord(nil, h.Note)
	if _, err := b.file.WriteAt(rec, b.end); err != nil {
		b.report(err)
		return
	}
	b.kept = append(b.kept, place{h.Pos, b.end + recordHeader, len(h.Note), crc32.Checksum(h.Note, castagnoli)})
	b.end += int64(len(rec))
	b.since, b.dirty = 0, true
	if time.Since(b.synced) >= syncEvery {
		b.report(b.sync())
	}
}

func (b *Book) sync() error {
	if !b.dirty {
		return nil
	}
	b.synced, b.dirty = time.Now(), false
	return b.file.Sync()
}

// report logs the first of several failures.
func (b *Book) report(err error) {
	if err != nil && !b.failing {
		b.log.Warn("writing signed heads failed; peers that are far behind may have to ask another node", "dir", b.dir, "err", err)
	}
	b.failing = err != nil
}

// Clear drops all heads, as when they were signed by a key that is not used any
// more.
func (b *Book) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.newest = Signed{}
		b.report(b.begin())
	}
}

// Trim drops what is kept of entries before first, now or when there is more of
// it.
func (b *Book) Trim(first uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, _ := b.find(first)
	if b.closed || n < trimAt || n < len(b.kept)/2 {
		return nil
	}
	rest := make([]byte, b.end-(b.kept[n-1].off+int64(b.kept[n-1].size)))
	if len(rest) > 0 {
		if _, err := b.file.ReadAt(rest, b.end-int64(len(rest))); err != nil {
			return fmt.Errorf("trim signed heads: %w", err)
		}
	}
	header := binary.LittleEndian.AppendUint32([]byte(keptMagic), keptVersion)
	if err := durable.WriteFile(b.fs, filepath.Join(b.dir, keptName), append(header, rest...), 0o640); err != nil {
		return fmt.Errorf("trim signed heads: %w", err)
	}
	f, err := b.openFile(keptName)
	if err != nil {
		return fmt.Errorf("trim signed heads: %w", err)
	}
	b.file.Close() // the old file has no name any more
	b.file = f
	moved := b.end - keptHeader - int64(len(rest))
	b.kept = slices.Clone(b.kept[n:])
	for i := range b.kept {
		b.kept[i].off -= moved
	}
	b.end -= moved
	return nil
}

// find returns the index of the first head kept of an entry at or after seq.
func (b *Book) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(b.kept, seq, func(p place, seq uint64) int {
		switch {
		case p.pos.Seq < seq:
			return -1
		case p.pos.Seq > seq:
			return 1
		}
		return 0
	})
}

// After returns the first head that is kept of an entry after seq, or the newest
// one if that is.
func (b *Book) After(seq uint64) (Signed, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, _ := b.find(seq + 1); i < len(b.kept); i++ {
		if h, ok := b.load(b.kept[i]); ok {
			return h, true
		}
	}
	return b.newest, b.newest.Pos.Seq > seq
}

// Before returns the last head that is kept of an entry before seq.
func (b *Book) Before(seq uint64) (Signed, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, _ := b.find(seq)
	for i--; i >= 0; i-- {
		if h, ok := b.load(b.kept[i]); ok {
			return h, true
		}
	}
	return Signed{}, false
}

// load reads a head that is kept. One that changed on the disk is none.
func (b *Book) load(p place) (Signed, bool) {
	if b.closed {
		return Signed{}, false
	}
	note := make([]byte, p.size)
	if _, err := b.file.ReadAt(note, p.off); err != nil || crc32.Checksum(note, castagnoli) != p.crc {
		return Signed{}, false
	}
	h, err := read(note)
	return h, err == nil
}

// Newest returns the newest head, zero if there is none.
func (b *Book) Newest() Signed {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.newest
}

// age returns how long ago the newest head was added. What an earlier process added is as
// old as it says, if that is not ahead of the clock.
func (b *Book) age() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.added.IsZero() {
		return max(0, time.Since(b.newest.Time))
	}
	return time.Since(b.added)
}

// Changed returns a channel that is closed when Newest returns another one.
func (b *Book) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.change
}

// places returns the positions of what is kept, in order.
func (b *Book) places() []txlog.Pos {
	b.mu.Lock()
	defer b.mu.Unlock()
	places := make([]txlog.Pos, len(b.kept))
	for i := range b.kept {
		places[i] = b.kept[i].pos
	}
	return places
}

// Len returns how many heads are kept.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.kept)
}

// Close fsyncs and closes the book, which then keeps and returns nothing more
// but the newest head. It may be called twice.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return errors.Join(b.sync(), b.slots.Sync(), b.closeFiles())
}

func (b *Book) closeFiles() error {
	var errs []error
	for _, f := range []durable.File{b.file, b.slots} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
