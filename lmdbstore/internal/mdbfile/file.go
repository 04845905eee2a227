package mdbfile

import (
	"errors"
	"io"
)

// Limits of what can be stored.
const (
	// MaxKey is the longest key, in bytes.
	MaxKey = 511
	// MaxValue is the longest value, in bytes: what an LMDB node can express.
	MaxValue = 1<<32 - 1
)

// Errors that callers branch on.
var (
	// ErrDamaged is wrapped by errors about a file that is not a sound
	// environment. The text names the page and what is wrong with it.
	ErrDamaged = errors.New("file is damaged")
	// ErrNoSuchTxn means that neither meta page is of the wanted transaction:
	// it is not committed yet, or two more were committed since.
	ErrNoSuchTxn = errors.New("no meta page of this transaction")
	// ErrNoSuchDB means that the environment has no database of that name.
	ErrNoSuchDB = errors.New("no database of this name")
)

// File is one snapshot of an environment file: what one transaction committed.
// It is read through an io.ReaderAt that stays the caller's, must not be
// truncated meanwhile, and is read concurrently if the File and its cursors
// are; a File itself is immutable.
type File struct {
}

// Open returns the newest snapshot in a file of size bytes. In a file that LMDB
// writes to meanwhile use OpenTxn.
func Open(r io.ReaderAt, size int64) (*File, error) { panic("unwritten") }

// OpenTxn returns the snapshot that transaction txnid committed, or
// ErrNoSuchTxn. LMDB may go on writing to the file as long as one of its read
// transactions of that id is open: the snapshot's pages then stay as they are.
// size may be taken at any time after that read transaction began.
func OpenTxn(r io.ReaderAt, size int64, txnid uint64) (*File, error) { panic("unwritten") }

// Txnid returns the id of the transaction that committed this snapshot.
func (f *File) Txnid() uint64 { panic("unwritten") }

// Stat returns the counts that are recorded of a database, or ErrNoSuchDB.
func (f *File) Stat(db string) (Stat, error) { panic("unwritten") }

// Get returns a copy of the value of key. ok is false when db has no such key;
// a db that does not exist is ErrNoSuchDB.
func (f *File) Get(db string, key []byte) (value []byte, ok bool, err error) { panic("unwritten") }

// Cursor returns a cursor before the first pair of a database, or ErrNoSuchDB.
func (f *File) Cursor(db string) (*Cursor, error) { panic("unwritten") }
