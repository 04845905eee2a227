package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/txlog"
)

// A record is what travels: a node's facts, with the name and the gossip address
// of the node they describe. Both identify it: two processes that claim one name
// cannot overwrite each other's facts.
type record struct {
	key
	version
	leaving bool // the node said that it goes
	facts   Facts
	raw     []byte // the encoding

	// With TLS: the owner's signature of raw, and its certificates.
	signature []byte
	chain     *chain
}

// wire returns the record as it is passed on: with full, together with whatever
// is needed to verify it.
func (r *record) wire(full bool) []byte {
	if r.chain == nil {
		return r.raw
	}
	e := envelope{record: r.raw, signature: r.signature, hash: r.chain.hash}
	if full {
		e.chain = r.chain.raw
	}
	return e.encode()
}

// expired reports whether nobody would take r any more who does not have it.
func (r *record) expired(now time.Time) bool {
	return r.chain != nil && now.After(r.chain.leaf.NotAfter)
}

// young reports whether the certificates of r are news to the others, perhaps.
func (r *record) young(now time.Time) bool {
	return r.chain != nil && now.Sub(r.chain.learned) < chainYoung
}

// key identifies a process: the name it claims and the address it gossips from.
type key struct {
	name string
	addr string // host:port, as memberlist advertises it
}

// version orders the records of one key. The incarnation is the clock at start,
// or more when a newer one was heard of; the counter counts changes since.
type version struct {
	incarnation uint64
	counter     uint64
}

func (v version) less(o version) bool {
	if v.incarnation != o.incarnation {
		return v.incarnation < o.incarnation
	}
	return v.counter < o.counter
}

// The first byte of a record. A decoder skips versions that it does not know:
// they come from newer software in the same fleet. Version 1 has no digest.
const (
	recordVersion = 2
	withoutDigest = 1
)

// maxIncarnation leaves room above every incarnation that can be heard.
const maxIncarnation = math.MaxInt64

// Longest strings in a record, in bytes. Their sum and the fixed part stay
// below MaxFacts, whatever the number of announcements.
const (
	maxName    = 128
	maxRole    = 16
	maxColo    = 64
	maxVersion = 64
	maxState   = 32
	maxAddr    = 128
	// The gossip address is an IP address and a port.
	maxGossipAddr = 64
)

// The encoding, little-endian, integers of fixed size, strings with a length
// byte before them:
//
//	version u8 = 2
//	incarnation u64, counter u64
//	flags u8: 1 writer, 2 leaving
//	name, gossip address, role, colo, software version
//	swarm address, peer address, HTTP address
//	dataset 16 bytes
//	state
//	applied: seq u64, hash 32 bytes, time i64, digest 32 bytes
//	head: seq u64, hash 32 bytes, time i64
//	first seq of the log u64
//	progress f64, from 0 to 1
//	fetching: infohash 20 bytes, bytes done i64, total bytes i64, bytes per second i64
//	received from managers, from the own colo, from other colos: bytes i64, pieces u32
//	number of announcements u8, each: seq u64, hash 32 bytes, infohash 20 bytes, size i64
//
// Times are nanoseconds since 1970, 0 for none. Nothing follows: one record has
// one encoding.
const (
	flagWriter  = 1
	flagLeaving = 2
)

// errNewerRecord means that a record was made by newer software.
var errNewerRecord = errors.New("record of a newer version")

// textField is a string of a record, its name in errors and its limit.
type textField struct {
	what string
	s    *string
	max  int
}

// texts lists the strings of a record in the order of the encoding, but for
// the state, which is the last.
func (r *record) texts() [8]textField {
	f := &r.facts
	return [8]textField{
		{"name", &r.name, maxName},
		{"gossip address", &r.addr, maxGossipAddr},
		{"role", (*string)(&f.Role), maxRole},
		{"colo", &f.Colo, maxColo},
		{"version", &f.Version, maxVersion},
		{"swarm address", &f.SwarmAddr, maxAddr},
		{"peer address", &f.PeerAddr, maxAddr},
		{"HTTP address", &f.HTTPAddr, maxAddr},
	}
}

// received lists the payload by source in the order of the encoding.
func (f *Facts) received() [3]*Payload {
	return [3]*Payload{&f.FromManagers, &f.FromOwnColo, &f.FromOtherColos}
}

// encode sets r.raw, or says which limit r passes.
func (r *record) encode() error {
	f := &r.facts
	b := make([]byte, 0, 512)
	b = append(b, recordVersion)
	b = binary.LittleEndian.AppendUint64(b, r.incarnation)
	b = binary.LittleEndian.AppendUint64(b, r.counter)
	var flags byte
	if f.Writer {
		flags |= flagWriter
	}
	if r.leaving {
		flags |= flagLeaving
	}
	b = append(b, flags)
	var err error
	text := func(t textField) {
		if len(*t.s) > t.max {
			err = errors.Join(err, fmt.Errorf("%s is %d bytes long; at most %d are allowed", t.what, len(*t.s), t.max))
			return
		}
		if !utf8.ValidString(*t.s) {
			err = errors.Join(err, fmt.Errorf("%s %q is not valid UTF-8", t.what, *t.s))
			return
		}
		b = append(b, byte(len(*t.s)))
		b = append(b, *t.s...)
	}
	for _, t := range r.texts() {
		text(t)
	}
	b = append(b, f.Dataset[:]...)
	text(textField{"state", &f.State, maxState})
	b = appendPos(b, f.Applied)
	b = appendTime(b, f.AppliedTime)
	b = append(b, f.AppliedDigest[:]...)
	b = appendPos(b, f.Head)
	b = appendTime(b, f.HeadTime)
	b = binary.LittleEndian.AppendUint64(b, f.LogFirst)
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(clampProgress(f.Progress)))
	b = append(b, f.Fetching[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(max(f.FetchDone, 0)))
	b = binary.LittleEndian.AppendUint64(b, uint64(max(f.FetchTotal, 0)))
	b = binary.LittleEndian.AppendUint64(b, uint64(max(f.FetchRate, 0)))
	for _, p := range f.received() {
		b = binary.LittleEndian.AppendUint64(b, uint64(max(p.Bytes, 0)))
		b = binary.LittleEndian.AppendUint32(b, p.Pieces)
	}
	b = append(b, byte(len(f.Snapshots)))
	for _, a := range f.Snapshots {
		b = appendPos(b, a.Pos)
		b = append(b, a.InfoHash[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(max(a.Size, 0)))
	}
	switch {
	case err != nil:
		return err
	case len(f.Snapshots) > MaxSnapshots:
		return fmt.Errorf("%d announcements; at most %d are allowed", len(f.Snapshots), MaxSnapshots)
	case len(b) > MaxFacts:
		return fmt.Errorf("record is %d bytes long; at most %d are allowed", len(b), MaxFacts)
	}
	r.raw, r.signature = b, nil
	return nil
}

// decodeRecord is the inverse of encode. It copies what it keeps of b.
func decodeRecord(b []byte) (record, error) {
	if len(b) == 0 {
		return record{}, errors.New("empty record")
	}
	if len(b) > MaxFacts {
		return record{}, fmt.Errorf("record is %d bytes long; at most %d are allowed", len(b), MaxFacts)
	}
	if b[0] > recordVersion {
		return record{}, fmt.Errorf("%w: %d", errNewerRecord, b[0])
	}
	if b[0] < withoutDigest {
		return record{}, fmt.Errorf("record version %d is unknown", b[0])
	}
	raw := append([]byte(nil), b...)
	d := decoder{b: raw[1:]}
	r := record{raw: raw}
	f := &r.facts
	r.incarnation, r.counter = d.u64(), d.u64()
	flags := d.take(1)
	for _, t := range r.texts() {
		*t.s = d.text(t.what, t.max)
	}
	copy(f.Dataset[:], d.take(len(f.Dataset)))
	f.State = d.text("state", maxState)
	f.Applied = d.pos()
	f.AppliedTime = d.time()
	if raw[0] > withoutDigest {
		copy(f.AppliedDigest[:], d.take(len(f.AppliedDigest)))
	}
	f.Head = d.pos()
	f.HeadTime = d.time()
	f.LogFirst = d.u64()
	f.Progress = math.Float64frombits(d.u64())
	copy(f.Fetching[:], d.take(len(f.Fetching)))
	f.FetchDone = d.size()
	f.FetchTotal = d.size()
	f.FetchRate = d.size()
	for _, p := range f.received() {
		p.Bytes = d.size()
		p.Pieces = binary.LittleEndian.Uint32(d.take(4))
	}
	if n := int(d.take(1)[0]); n > MaxSnapshots {
		d.fail("%d announcements; at most %d are allowed", n, MaxSnapshots)
	} else if n > 0 {
		f.Snapshots = make([]Announcement, n)
		for i := range f.Snapshots {
			a := &f.Snapshots[i]
			a.Pos = d.pos()
			copy(a.InfoHash[:], d.take(len(a.InfoHash)))
			a.Size = d.size()
		}
	}
	f.Writer = flags[0]&flagWriter != 0
	r.leaving = flags[0]&flagLeaving != 0
	f.Name = r.name
	switch {
	case flags[0]&^(flagWriter|flagLeaving) != 0:
		d.fail("unknown flags %#x", flags[0])
	case r.incarnation > maxIncarnation:
		d.fail("incarnation %d is out of range", r.incarnation)
	case r.name == "" || r.addr == "":
		d.fail("record without name or gossip address")
	case !(f.Progress >= 0 && f.Progress <= 1) || math.Signbit(f.Progress):
		d.fail("progress %v is not between 0 and 1", f.Progress)
	case len(d.b) > 0:
		d.fail("%d bytes follow the record", len(d.b))
	}
	if d.err != nil {
		return record{}, d.err
	}
	return r, nil
}

func appendPos(b []byte, p txlog.Pos) []byte {
	b = binary.LittleEndian.AppendUint64(b, p.Seq)
	return append(b, p.Hash[:]...)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.LittleEndian.AppendUint64(b, 0)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(t.UnixNano()))
}

func clampProgress(p float64) float64 {
	if !(p > 0) { // NaN and negative zero too
		return 0
	}
	return min(p, 1)
}

// decoder takes fields off b and remembers the first error. Once it failed it
// returns zeros.
type decoder struct {
	b   []byte
	err error
}

var zeros [64]byte

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.b = nil
}

// take returns the next n ≤ len(zeros) bytes.
func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.fail("record is cut short")
		return zeros[:n]
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

func (d *decoder) size() int64 {
	n := int64(d.u64())
	if n < 0 {
		d.fail("negative size %d", n)
		return 0
	}
	return n
}

func (d *decoder) pos() (p txlog.Pos) {
	p.Seq = d.u64()
	copy(p.Hash[:], d.take(len(p.Hash)))
	return p
}

func (d *decoder) time() time.Time {
	n := int64(d.u64())
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

func (d *decoder) text(what string, limit int) string {
	n := int(d.take(1)[0])
	if n > limit || n > len(d.b) {
		d.fail("%s of %d bytes is too long", what, n)
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	if !utf8.ValidString(s) {
		d.fail("%s %q is not valid UTF-8", what, s)
	}
	return s
}
