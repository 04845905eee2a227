package heads

import (
	"fmt"

	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// Reason is why an upstream is not believed, in a word for a metric's label.
type Reason string

const (
	Malformed    = Reason(signing.Malformed)
	Unsigned     = Reason(signing.Unsigned) // it sends no signed heads
	UnknownKey   = Reason(signing.UnknownKey)
	BadSignature = Reason(signing.BadSignature)
	WrongDataset = Reason("wrong_dataset") // a signed head of another one
	Uncovered    = Reason("uncovered")     // no signed head came for its entries in time
	Altered      = Reason("altered")       // its entries do not lead to a signed head
	Garbled      = Reason("garbled")       // what it sends does not link, or is no log
	Unproven     = Reason("unproven")      // it contradicts us, and has no signed head to prove it
)

// FaultError means that an upstream sent, or kept back, what an honest one would
// not. Nothing of it was handed on. Another upstream may do better.
type FaultError struct {
	Reason Reason
	Err    error
}

func (e *FaultError) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }
func (e *FaultError) Unwrap() error { return e.Err }

func faultf(reason Reason, format string, args ...any) *FaultError {
	return &FaultError{reason, fmt.Errorf(format, args...)}
}

// ContradictedError means that this node's log holds an entry that no signed head
// covers, and a signed head vouches for another one: this node is wrong.
type ContradictedError struct {
	Seq        uint64
	Have, Want txlog.Hash // this log's entry, and the one that is vouched for
}

func (e *ContradictedError) Error() string {
	return fmt.Sprintf("a signed head proves that entry %d is %s; this log has %s, which no signed head covers", e.Seq, e.Want, e.Have)
}

// ForkError means that two histories of the dataset were signed. Nothing may be
// applied until an operator has decided which is right.
type ForkError struct {
	Dataset txlog.DatasetID
	Seq     uint64 // the first entry in which they are known to differ; 0: the evidence can not be read
	Path    string // of the evidence
}

func (e *ForkError) Error() string {
	return fmt.Sprintf("dataset %s is forked: two different entries %d were signed; nothing is applied any more. Evidence: %s. "+
		"Find out which history is right, empty the data directory of nodes that hold the other, then remove the evidence and restart",
		e.Dataset, e.Seq, e.Path)
}

// LostError means that this writer's log ends before an entry that was signed: it
// was restored from an old copy, or its disk lost the end. To write on would fork
// the dataset.
type LostError struct {
	Dataset txlog.DatasetID
	Signed  txlog.Pos // as From showed
	Head    txlog.Pos // of this node's log
	From    string
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the writer of dataset %s lost entries: its log ends at entry %d, and %s has its signature under entry %d. No more writes are taken. "+
		"Restore the log, or start the writer on a copy of a follower's data directory that has them",
		e.Dataset, e.Head.Seq, e.From, e.Signed.Seq)
}
