package txlog

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limits of an entry, in bytes but for MaxOps. They are checked when an entry
// is made and again when one is decoded; passing one is a *LimitError.
const (
	MaxKey   = 511      // LMDB's limit; keys are at least 1 byte
	MaxValue = 16 << 20 // a value may be empty
	MaxEntry = 64 << 20 // of the encoded frame

	// MaxOps is how many operations an entry may have. A decoded operation takes
	// several times the bytes of the smallest encoded one.
	MaxOps = 1 << 20
)

// Hash is an entry's SHA-256 hash, chained over all entries before it.
type Hash [32]byte

// String returns the hash as 64 hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is the hash before the first entry.
func (h Hash) IsZero() bool { return h == Hash{} }

// ParseHash is the inverse of Hash.String.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != 2*len(h) {
		return Hash{}, fmt.Errorf("hash %q: want %d hexadecimal digits, got %d characters", s, 2*len(h), len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return Hash{}, fmt.Errorf("hash %q: %w", s, err)
	}
	return h, nil
}

// DatasetID names a dataset: random, made with its first entry, never changed.
type DatasetID [16]byte

// String returns the id as 32 hexadecimal digits.
func (d DatasetID) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether no dataset is known.
func (d DatasetID) IsZero() bool { return d == DatasetID{} }

// ParseDatasetID is the inverse of DatasetID.String.
func ParseDatasetID(s string) (DatasetID, error) {
	var d DatasetID
	if len(s) != 2*len(d) {
		return DatasetID{}, fmt.Errorf("dataset id %q: want %d hexadecimal digits, got %d characters", s, 2*len(d), len(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return DatasetID{}, fmt.Errorf("dataset id %q: %w", s, err)
	}
	return d, nil
}

// Pos is a position in the log: an entry's ordinal and its hash. Two nodes at
// one Pos hold the same data. The zero Pos is the position before entry 1.
type Pos struct {
	Seq  uint64
	Hash Hash
}

// IsZero reports whether p is the position before the first entry.
func (p Pos) IsZero() bool { return p == Pos{} }

// String returns "seq/hash", the hash in 64 hexadecimal digits.
func (p Pos) String() string { return strconv.FormatUint(p.Seq, 10) + "/" + p.Hash.String() }

// ParsePos is the inverse of Pos.String.
func ParsePos(s string) (Pos, error) {
	seq, hash, ok := strings.Cut(s, "/")
	if !ok {
		return Pos{}, fmt.Errorf("position %q: want SEQ/HASH", s)
	}
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return Pos{}, fmt.Errorf("position %q: %w", s, err)
	}
	h, err := ParseHash(hash)
	if err != nil {
		return Pos{}, fmt.Errorf("position %q: %w", s, err)
	}
	return Pos{Seq: n, Hash: h}, nil
}

// Kind says what an operation does.
type Kind uint8

const (
	Put    Kind = 1 // sets Key to Value
	Delete Kind = 2 // removes Key; deleting an absent key is no error
	Init   Kind = 3 // only in entry 1: Value is the dataset id, Key is empty
)

// Op is one operation of an entry. Within an entry operations apply in order.
type Op struct {
	Kind  Kind
	Key   []byte
	Value []byte
}

// Entry is one transaction of the log. Entries come from Seal, Decode or a
// Reader, which verified Hash; treat them, and the bytes they point at, as
// read-only.
type Entry struct {
	Seq   uint64
	Epoch uint64
	Time  time.Time // the writer's clock
	Prev  Hash
	Ops   []Op
	Hash  Hash

	frame []byte // the encoding
}

// Pos returns the position that applying e leads to.
func (e *Entry) Pos() Pos { return Pos{Seq: e.Seq, Hash: e.Hash} }

// Frame returns e's encoding, as it stands on disk and on the wire.
func (e *Entry) Frame() []byte { return e.frame }

// Errors that callers branch on.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("log is closed")
	// ErrFailed is wrapped by every Append after an fsync failed. The log must
	// be opened again, which finds out what the disk kept.
	ErrFailed = errors.New("log stopped after a failed fsync")
	// ErrEmptyTransaction refuses an entry without operations.
	ErrEmptyTransaction = errors.New("transaction has no operations")
)

// LimitError says which limit an entry passed on its way in.
type LimitError struct {
	What string // "key", "value" or "entry", in bytes; or LimitOps, a count
	Got  int64
	Min  int64
	Max  int64
}

// LimitOps is what a LimitError about MaxOps is about.
const LimitOps = "number of operations"

func (e *LimitError) Error() string {
	if e.What == LimitOps {
		return fmt.Sprintf("%s is %d; allowed are %d to %d", e.What, e.Got, e.Min, e.Max)
	}
	return fmt.Sprintf("%s is %d bytes long; allowed are %d to %d", e.What, e.Got, e.Min, e.Max)
}

// TrimmedError means that the log no longer reaches back to a position: the
// asker needs a snapshot.
type TrimmedError struct {
	Asked uint64 // the seq of the position asked for
	First uint64 // the first seq that is still kept
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("the log no longer holds what follows entry %d: it starts at entry %d", e.Asked, e.First)
}

// DivergedError means that two logs hold different entries at one seq, or that
// one of them is ahead of the log it should follow. (Have is zero then.)
type DivergedError struct {
	Seq  uint64
	Have Hash // this log's hash at Seq
	Want Hash // the asker's
}

func (e *DivergedError) Error() string {
	if e.Have.IsZero() {
		return fmt.Sprintf("diverged: asked for what follows entry %d (%s), which this log does not have yet", e.Seq, e.Want)
	}
	return fmt.Sprintf("diverged at entry %d: this log has %s, the other %s", e.Seq, e.Have, e.Want)
}

// CorruptError means that acknowledged bytes of the log are damaged, or do not
// link. Nothing after the position can be trusted; nothing was changed.
type CorruptError struct {
	Segment string // file name
	Offset  int64  // bytes from the start of the file
	Seq     uint64 // of the entry that should stand there
	Reason  string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("log segment %s is damaged at offset %d (entry %d): %s", e.Segment, e.Offset, e.Seq, e.Reason)
}
