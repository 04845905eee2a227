//go:build !lmdb_bmatsuo

package lmdbstore

import (
	"errors"
	"syscall"

	"github.com/PowerDNS/lmdb-go/lmdb"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
)

// This file and binding_bmatsuo.go are the only ones that name an LMDB binding,
// and they hold the same declarations. Why there are two, and why this one is
// the default: docs/decisions/0001-lmdb-binding.md. Both in one binary would
// define LMDB's C symbols twice.
const (
	flagReadonly = lmdb.Readonly
	flagCreate   = lmdb.Create

	opFirst    = lmdb.First
	opLast     = lmdb.Last
	opNext     = lmdb.Next
	opPrev     = lmdb.Prev
	opSetRange = lmdb.SetRange
)

// calls reach the LMDB that the binding brings.
var calls = guard.Calls{Error: func(op string, code guard.Code) error {
	if code > 0 {
		return &lmdb.OpError{Op: op, Errno: syscall.Errno(code)}
	}
	return &lmdb.OpError{Op: op, Errno: lmdb.Errno(code)}
}}

func isNotFound(err error) bool    { return lmdb.IsNotFound(err) }
func isMapFull(err error) bool     { return lmdb.IsMapFull(err) }
func isMapResized(err error) bool  { return lmdb.IsMapResized(err) }
func isReadersFull(err error) bool { return lmdb.IsErrno(err, lmdb.ReadersFull) }
func isPanic(err error) bool       { return lmdb.IsErrno(err, lmdb.Panic) }
func isBadSlot(err error) bool     { return lmdb.IsErrno(err, lmdb.BadRSlot) }

// isTxnFull reports whether a write transaction grew beyond what LMDB can track.
func isTxnFull(err error) bool {
	return lmdb.IsErrno(err, lmdb.TxnFull)
}

// isUnsound reports whether LMDB says that a file is not what it should be, or
// stopped because of it.
func isUnsound(err error) bool {
	var op *lmdb.OpError
	if !errors.As(err, &op) {
		return isFault(err)
	}
	switch op.Errno {
	case lmdb.Corrupted, lmdb.Invalid, lmdb.PageNotFound, lmdb.VersionMismatch, lmdb.BadTxn, lmdb.PageFull, lmdb.CursorFull:
		return true
	}
	// In a sound file there is only one reason for not finding anything.
	return op.Errno != lmdb.NotFound && (op.Op == "mdb_get" || op.Op == "mdb_cursor_get")
}

// sysErrno returns what the operating system said under one of LMDB's errors,
// which do not unwrap.
func sysErrno(err error) error {
	var sys error
	lmdb.IsErrnoFn(err, func(e error) bool { sys = e; return true })
	return sys
}
