package p2p

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/chunker"
)

// The words of the piece requests: see the package documentation.
const (
	nodeHeader = "Qs-Node"
	pieceLeaf  = "/piece/"
	haveLeaf   = "/have"
)

// maxNode bounds a node's name, in bytes, as gossip does.
const maxNode = 128

// maxRetry bounds how long a peer may tell us to wait.
const maxRetry = time.Minute

// LeasedError is a source's answer to a request for a piece that another node
// of the asker's colo is getting from it: from there it can be had more cheaply.
type LeasedError struct {
	Holder string        // the node's name
	Retry  time.Duration // the source may give it to others then
}

func (e *LeasedError) Error() string {
	return fmt.Sprintf("the piece is leased to %s; ask again in %v", e.Holder, e.Retry)
}

// BusyError is a peer's answer to a request that it can not serve now: it has
// too many, or no dataset yet.
type BusyError struct {
	Reason string
	Retry  time.Duration // when to ask again; 0: the peer did not say
}

func (e *BusyError) Error() string { return e.Reason }

func piecePath(ih chunker.InfoHash, index int) string {
	return snapshotPath + ih.String() + pieceLeaf + strconv.Itoa(index)
}

func havePath(ih chunker.InfoHash) string { return snapshotPath + ih.String() + haveLeaf }

// parseIndex parses a piece's index in its one spelling.
func parseIndex(s string) (int, error) {
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 || strconv.Itoa(i) != s {
		return 0, fmt.Errorf("%w: piece %.32q: want a number from 0, in decimal", ErrProtocol, s)
	}
	return i, nil
}

// class tells how urgent pieces for a peer are.
func (p Peer) class() Class {
	if p.Repairing {
		return Repair
	}
	return Rebuild
}

// checkNode checks a node's name as it came from a peer.
func checkNode(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: a node's name is missing", ErrProtocol)
	case len(name) > maxNode:
		return fmt.Errorf("%w: a node's name of %d bytes: the limit is %d", ErrProtocol, len(name), maxNode)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: a node's name is not UTF-8", ErrProtocol)
	}
	return nil
}

// appendBitmap appends which pieces there are, as BitTorrent does (BEP 3): the
// first piece is the highest bit of the first byte, spare bits are zero.
func appendBitmap(b []byte, have []bool) []byte {
	n := len(b)
	b = append(b, make([]byte, bitmapSize(len(have)))...)
	for i, ok := range have {
		if ok {
			b[n+i/8] |= 0x80 >> (i % 8)
		}
	}
	return b
}

// parseBitmap is the inverse of appendBitmap.
func parseBitmap(b []byte, pieces int) ([]bool, error) {
	if len(b) != bitmapSize(pieces) {
		return nil, fmt.Errorf("%w: %d bytes say which of %d pieces there are: want %d", ErrProtocol, len(b), pieces, bitmapSize(pieces))
	}
	if spare := len(b)*8 - pieces; spare > 0 && b[len(b)-1]<<(8-spare) != 0 {
		return nil, fmt.Errorf("%w: there are bits for more than %d pieces", ErrProtocol, pieces)
	}
	have := make([]bool, pieces)
	for i := range have {
		have[i] = b[i/8]&(0x80>>(i%8)) != 0
	}
	return have, nil
}

func bitmapSize(pieces int) int { return (pieces + 7) / 8 }

// Pieces are the pieces of snapshots that a node holds, and whom it knows.
// *Swarm implements it.
type Pieces interface {
	// have returns which pieces of a snapshot are good here, or ErrNotHeld.
	have(chunker.InfoHash) ([]bool, error)
	// holds returns nil for a good piece, ErrNotHeld if it is missing, and
	// ErrProtocol if there can be no such piece.
	holds(ih chunker.InfoHash, index int) error
	// open opens a good piece, with the same errors.
	open(ih chunker.InfoHash, index int) (*openPiece, error)
	// asker returns what gossip says of a node (nothing, if it has not heard of
	// it) and whether it is in this node's colo.
	asker(name string) (p Peer, near bool)
}
