//go:build !lmdb_bmatsuo

package lmdbstore

import "github.com/PowerDNS/lmdb-go/lmdb"

// This file and binding_bmatsuo.go are the only ones that name an LMDB binding,
// and they hold the same declarations. Why there are two, and why this one is
// the default: docs/decisions/0001-lmdb-binding.md. Both in one binary would
// define LMDB's C symbols twice.
type (
	lmdbEnv    = lmdb.Env
	lmdbTxn    = lmdb.Txn
	lmdbCursor = lmdb.Cursor
	lmdbDBI    = lmdb.DBI
)

const (
	flagReadonly = lmdb.Readonly
	flagCreate   = lmdb.Create

	opFirst    = lmdb.First
	opLast     = lmdb.Last
	opNext     = lmdb.Next
	opPrev     = lmdb.Prev
	opSetRange = lmdb.SetRange
)

func newLMDBEnv() (*lmdbEnv, error) { return lmdb.NewEnv() }

func isNotFound(err error) bool    { return lmdb.IsNotFound(err) }
func isMapFull(err error) bool     { return lmdb.IsMapFull(err) }
func isMapResized(err error) bool  { return lmdb.IsMapResized(err) }
func isReadersFull(err error) bool { return lmdb.IsErrno(err, lmdb.ReadersFull) }

// isTxnFull reports whether a write transaction grew beyond what LMDB can track.
func isTxnFull(err error) bool {
	return lmdb.IsErrno(err, lmdb.TxnFull) || lmdb.IsErrno(err, lmdb.PageFull) || lmdb.IsErrno(err, lmdb.CursorFull)
}

// isUnsound reports whether LMDB says that a file is not what it should be.
func isUnsound(err error) bool {
	return lmdb.IsErrno(err, lmdb.Corrupted) || lmdb.IsErrno(err, lmdb.Invalid) ||
		lmdb.IsErrno(err, lmdb.PageNotFound) || lmdb.IsErrno(err, lmdb.VersionMismatch)
}

// sysErrno returns what the operating system said under one of LMDB's errors,
// which do not unwrap.
func sysErrno(err error) error {
	var sys error
	lmdb.IsErrnoFn(err, func(e error) bool { sys = e; return true })
	return sys
}
