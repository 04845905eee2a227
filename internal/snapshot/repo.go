package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/txlog"
)

// Errors that callers branch on.
var (
	// ErrClosed is returned by calls after Close, and by those that Close ended.
	ErrClosed = errors.New("snapshot directory is closed")
	// ErrConflict is wrapped when another file is already held at a snapshot's
	// position. Files at one position are the same, so one of the two is wrong:
	// its replica diverged or is damaged.
	ErrConflict = errors.New("a different snapshot is held at that position")
)

// Options configure a Repo. The zero value is ready to use.
type Options struct {
	// Signer signs the manifests of what is minted. Default: they are not signed.
	Signer *signing.Signer
	// MintRate limits writing while minting, in bytes per second. 0: no limit.
	MintRate int64
	// FS is where the directory lives. Default durable.OS.
	FS durable.FS
	// Logger gets what was minted, adopted and removed, and damage. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_snapshot_* metrics. Default: none.
	Registerer prometheus.Registerer
}

func (o *Options) validate() error {
	if o.MintRate < 0 {
		return fmt.Errorf("mint rate %d is negative; 0 means no limit", o.MintRate)
	}
	if o.FS == nil {
		o.FS = durable.OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Snapshot is a complete snapshot on this node's disk. It is immutable.
type Snapshot struct {
	Manifest Manifest
	Torrent  *chunker.Torrent
	Path     string // of the .mdb file
	// Note is the manifest as it is kept and passed on: signed by whoever did, or
	// its bare text.
	Note []byte
}

// Repo is a node's snapshots directory. Its methods may be called concurrently.
type Repo struct {
	dir     string
	o       Options
	metrics *metrics

	ctx     context.Context // ends with Close
	cancel  context.CancelCauseFunc
	running sync.WaitGroup // mints and adoptions
	mint    chan struct{}  // full while one mints

	mu     sync.Mutex  // guards what follows, and the names of complete snapshots
	held   []*Snapshot // newest first
	broken []*Broken   // newest first
	closed bool
}

// Open opens the directory, creating it if need be. It checks of each snapshot
// that the three files are there, agree, and have the right size; reading every
// byte is Verify's work. It removes what a crash left half-made. Of a snapshot that
// is damaged it sets aside what is; the rest is Broken's.
func Open(dir string, o Options) (*Repo, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(o.FS, dir, 0o755); err != nil {
		return nil, fmt.Errorf("create snapshot directory: %w", err)
	}
	c, err := scan(o.FS, dir)
	if err != nil {
		return nil, err
	}
	r := &Repo{dir: dir, o: o, held: c.sound, mint: make(chan struct{}, 1)}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	for _, file := range c.leftovers {
		if err := o.FS.Remove(filepath.Join(dir, file)); err != nil {
			return nil, fmt.Errorf("remove what a crash left: %w", err)
		}
		o.Logger.Info("removed an unfinished snapshot file", "file", file)
	}
	if len(c.leftovers) > 0 {
		if err := o.FS.SyncDir(dir); err != nil {
			return nil, fmt.Errorf("sync snapshot directory: %w", err)
		}
	}
	for _, d := range c.damaged {
		b, err := r.dismantle(d)
		if err != nil {
			return nil, fmt.Errorf("set what is damaged of a snapshot aside: %w", err)
		}
		r.addBroken(b)
		o.Logger.Warn("a snapshot is damaged", "evidence", r.evidence(d.Name), "err", d)
	}
	if err := r.clearAside(); err != nil {
		return nil, err
	}
	r.metrics = newMetrics(o.Registerer, r)
	return r, nil
}

// maxAside bounds what damaged snapshots take of the disk: of as many, the newest,
// what was set aside is kept to be looked at.
const maxAside = 2

// clearAside removes what was set aside of older snapshots.
func (r *Repo) clearAside() error {
	entries, err := r.o.FS.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("list snapshot directory: %w", err)
	}
	files := make(map[string][]string)
	for _, e := range entries {
		if name, _, ext, ok := splitName(e.Name()); ok && strings.HasSuffix(ext, damagedExt) {
			files[name] = append(files[name], e.Name())
		}
	}
	names := slices.Sorted(maps.Keys(files)) // by seq
	for _, name := range names[:max(0, len(names)-maxAside)] {
		r.o.Logger.Info("removing what was set aside of a damaged snapshot", "snapshot", name)
		for _, file := range files[name] {
			err := durable.Remove(r.o.FS, filepath.Join(r.dir, file))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // the disk budget takes such files, too
				return fmt.Errorf("remove what was set aside: %w", err)
			}
		}
	}
	return nil
}

// List returns the complete snapshots, newest first.
func (r *Repo) List() []*Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.held)
}

// Get returns the complete snapshot with an infohash.
func (r *Repo) Get(h chunker.InfoHash) (*Snapshot, bool) {
	return r.find(func(s *Snapshot) bool { return s.Manifest.InfoHash == h })
}

func (r *Repo) at(pos txlog.Pos) (*Snapshot, bool) {
	return r.find(func(s *Snapshot) bool { return s.Manifest.Pos == pos })
}

func (r *Repo) find(match func(*Snapshot) bool) (*Snapshot, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(r.held, match); i >= 0 {
		return r.held[i], true
	}
	return nil, false
}

// Remove deletes a snapshot, or what there is of it. Who has the file open
// keeps it. Nothing there is no error.
func (r *Repo) Remove(pos txlog.Pos) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.held = slices.DeleteFunc(r.held, func(s *Snapshot) bool { return s.Manifest.Pos == pos })
	return r.remove(Name(pos))
}

// remove deletes the files of a snapshot that is not held any more. The caller
// holds mu.
func (r *Repo) remove(name string) error {
	r.mendedLocked(name)
	// The manifest goes first, for good: one that outlives its files would look
	// like damage after a crash.
	if err := r.removeFiles(name, manifestExt, torrentExt, dataExt, partExt); err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	r.o.Logger.Info("removed a snapshot", "snapshot", name)
	return nil
}

// removeFiles deletes those files of a snapshot that exist, one for good before
// the next.
func (r *Repo) removeFiles(name string, exts ...string) error {
	for _, ext := range exts {
		if err := durable.Remove(r.o.FS, filepath.Join(r.dir, name+ext)); err != nil {
			return err
		}
	}
	return nil
}

// enter registers a piece of work that Close ends and waits for.
func (r *Repo) enter(ctx context.Context) (context.Context, func(), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nil, ErrClosed
	}
	r.running.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		r.running.Done()
	}, nil
}

// Close ends mints and adoptions and waits for them. It may be called twice.
func (r *Repo) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel(ErrClosed)
	r.running.Wait()
	return nil
}

// publish gives the file at temp, whose content is on stable storage, its final
// name and its companions. When that fails, or when the snapshot is there already
// and only gets the note's signatures, the file is at temp still.
func (r *Repo) publish(m *Manifest, note []byte, t *chunker.Torrent, temp string) (s *Snapshot, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := Name(m.Pos)
	for _, s := range r.held {
		if s.Manifest.Pos != m.Pos {
			continue
		}
		if s.Manifest.InfoHash != m.InfoHash {
			return nil, fmt.Errorf("%w: %s has infohash %v, the new one %v; verify the store, then remove the wrong one",
				ErrConflict, s.Path, s.Manifest.InfoHash, m.InfoHash)
		}
		return r.countersign(s, note)
	}
	note = r.withSignatures(name, m, note)
	path := filepath.Join(r.dir, name+dataExt)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.removeFiles(name, manifestExt, torrentExt), r.unname(path, temp))
		}
	}()
	if err := durable.Rename(r.o.FS, temp, path); err != nil {
		return nil, fmt.Errorf("name the snapshot file: %w", err)
	}
	if err := durable.WriteFile(r.o.FS, filepath.Join(r.dir, name+torrentExt), t.Metainfo(), 0o644); err != nil {
		return nil, fmt.Errorf("write torrent: %w", err)
	}
	if err := r.writeNote(name, note); err != nil {
		return nil, err
	}
	r.mendedLocked(name)
	s = &Snapshot{Manifest: *m, Torrent: t, Path: path, Note: note}
	at, _ := slices.BinarySearchFunc(r.held, s, newestFirst)
	r.held = slices.Insert(slices.Clone(r.held), at, s)
	return s, nil
}

// withSignatures adds to a note those of a snapshot that was broken. The caller
// holds mu.
func (r *Repo) withSignatures(name string, m *Manifest, note []byte) []byte {
	for _, b := range r.broken {
		if b.Name != name || b.Manifest == nil || b.Manifest.InfoHash != m.InfoHash {
			continue
		}
		if merged, err := mergeNotes(note, b.Note); err == nil {
			return merged
		}
	}
	return note
}

// unname takes a final name back, if it was given.
func (r *Repo) unname(path, temp string) error {
	if err := r.o.FS.Rename(path, temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func newestFirst(a, b *Snapshot) int {
	return -strings.Compare(a.Path, b.Path)
}

type metrics struct {
	mints       *prometheus.CounterVec
	mintSeconds prometheus.Histogram
	mintBytes   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Repo) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_snapshot_held_snapshots", Help: "Complete snapshots on this node's disk.",
	}, func() float64 { return float64(len(r.List())) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_snapshot_held_bytes", Help: "Size of the complete snapshots on this node's disk.",
	}, func() float64 {
		var n int64
		for _, s := range r.List() {
			n += s.Manifest.Size
		}
		return float64(n)
	})
	return &metrics{
		mints: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_snapshot_mints_total", Help: "Mints that ended, by result.",
		}, []string{"result"}),
		mintSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "qs_snapshot_mint_seconds", Help: "How long successful mints took.",
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 8),
		}),
		mintBytes: f.NewCounter(prometheus.CounterOpts{
			Name: "qs_snapshot_minted_bytes_total", Help: "Bytes written by mints, failed ones included.",
		}),
	}
}
