// Package snapshot owns a node's snapshots directory and the manifest format.
//
// A snapshot is three files that appear together, the manifest last:
//
//	NAME.mdb        the canonical LMDB file, immutable, seeded as it is
//	NAME.torrent    its metainfo
//	NAME.manifest   what is signed about it
//	NAME.part       the file while it is being written or fetched
//
// with NAME = snapshot-SEQ-HASH: the seq in 20 decimal digits and the first 16
// digits of the entry's hash. A NAME.mdb without a manifest is unfinished and is
// removed at open; a .part that a fetch left is kept for resuming.
//
// # Manifest
//
// Text, one "name value" pair a line in this order, which is also what a
// manager signs:
//
//	qs-snapshot-v1
//	dataset 32 hexadecimal digits
//	pos SEQ/HASH
//	time RFC 3339 with nanoseconds, UTC: the writer's clock in the entry at pos
//	format 1
//	pairs N
//	size BYTES
//	sha256 64 hexadecimal digits
//	infohash 40 hexadecimal digits
//	piece-length BYTES
//
// Every field follows from the log up to pos, so two managers at one position
// write the same manifest, to the byte.
package snapshot

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// Manifest is what is known about a snapshot.
type Manifest struct {
	Dataset     txlog.DatasetID
	Pos         txlog.Pos
	Time        time.Time
	Format      int
	Pairs       uint64
	Size        int64
	SHA256      [32]byte
	InfoHash    chunker.InfoHash
	PieceLength int64
}

// Encode returns the manifest's text.
func (m *Manifest) Encode() []byte { panic("unwritten") }

// ParseManifest is the inverse of Encode, and accepts nothing else.
func ParseManifest(text []byte) (*Manifest, error) { panic("unwritten") }

// Name returns the snapshot's file name without extension.
func Name(pos txlog.Pos) string { panic("unwritten") }

// Snapshot is a complete snapshot on this node's disk.
type Snapshot struct {
	Manifest Manifest
	Torrent  *chunker.Torrent
	Path     string // of the .mdb file
}

// Minter is what Mint needs of a store; *lmdbstore.Store is one.
type Minter interface {
	Mint(ctx context.Context, begin func(lmdbstore.SnapshotInfo) (io.Writer, error)) (lmdbstore.SnapshotInfo, error)
}

// Options configure a Repo. The zero value is ready to use.
type Options struct {
	// MintRate limits writing while minting, in bytes per second. 0: no limit.
	MintRate int64
	Logger   *slog.Logger
	// Registerer gets the qs_snapshot_* metrics. Default: none.
	Registerer prometheus.Registerer
}

// Repo is a node's snapshots directory. Its methods may be called concurrently.
type Repo struct{}

// Open opens the directory, creating it if need be. It checks of each snapshot
// that the three files are there, agree, and have the right size; reading every
// byte is Verify's work.
func Open(dir string, o Options) (*Repo, error) { panic("unwritten") }

// List returns the complete snapshots, newest first.
func (r *Repo) List() []*Snapshot { panic("unwritten") }

// Get returns the complete snapshot with an infohash.
func (r *Repo) Get(h chunker.InfoHash) (*Snapshot, bool) { panic("unwritten") }

// Mint makes a snapshot of the store, or returns the one that is there at its
// position. One mint runs at a time; a second call waits. progress, if not nil,
// is called with bytes done and total.
func (r *Repo) Mint(ctx context.Context, m Minter, progress func(done, total int64)) (*Snapshot, error) {
	panic("unwritten")
}

// Partial returns the path at which to fetch the file of a snapshot.
func (r *Repo) Partial(m *Manifest) string { panic("unwritten") }

// Adopt completes a snapshot that was fetched to Partial: it verifies size and
// SHA-256, fsyncs and renames. A file that does not match is an error and is
// left where it is.
func (r *Repo) Adopt(ctx context.Context, m *Manifest, t *chunker.Torrent) (*Snapshot, error) {
	panic("unwritten")
}

// Remove deletes a snapshot, or what there is of it. Who has the file open
// keeps it.
func (r *Repo) Remove(pos txlog.Pos) error { panic("unwritten") }

// Verify reads a snapshot's file and compares size, pieces and SHA-256 with the
// manifest.
func (s *Snapshot) Verify(ctx context.Context) error { panic("unwritten") }

// Close waits for a mint to end. It may be called twice.
func (r *Repo) Close() error { panic("unwritten") }
