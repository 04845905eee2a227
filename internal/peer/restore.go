package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

// A writer's data directory is restored inside of itself, since it may be a mount
// point: restoring/ is a data directory in which this node follows the fleet, as
// any manager that begins with nothing, until it holds all that anybody holds.
// What of the damaged log goes on from there is appended. Until then it is a follower's,
// and an attempt that was interrupted goes on. Then restoring/ready makes the rest
// repeatable: it becomes the writer's, everything but restoring/ is moved aside, and
// what is in it up.
const (
	restoringDir = "restoring"
	readyName    = "ready"
	followedName = "followed" // where in restoring/ what is salvaged begins
	asidePrefix  = "damaged-"

	// restorePatience is how long a restore waits for entries that somebody has, or
	// for the writer's word, without getting any further.
	restorePatience = 20 * time.Second
)

// RestoreOptions say how a writer is restored. The node's Options are those with which it
// runs; it joins members of the fleet.
type RestoreOptions struct {
	Options
	// From is the name of a member that has to be reached.
	From string
	// AcceptLoss gives up entries that were signed, or that somebody claims to have,
	// and that nobody sends.
	AcceptLoss bool

	// reached, if not nil, is called after each step; an error ends the restore there.
	reached func(step string) error
}

// Restored is what Restore did.
type Restored struct {
	Dataset  txlog.DatasetID
	First    uint64    // the first entry of the log
	Head     txlog.Pos // the last one
	Salvaged uint64    // how many of them only the damaged log had
	Lost     uint64    // how many entries after Head are given up, as far as known
	Aside    string    // where what was there is kept; empty if there was nothing
}

// LossError means that entries are known to have existed, and nobody has them.
type LossError struct {
	Have, Want uint64
	Who        string
}

func (e *LossError) Error() string {
	return fmt.Sprintf("%s tells of entries up to %d, and what can be restored ends at entry %d: entries would be lost; "+
		"start a follower that has them, or give them up with --accept-loss; nothing was changed", e.Who, e.Want, e.Have)
}

// Restore gives a writer whose data directory is damaged, or lost, what the
// fleet holds. Until all of it is there, and on stable storage, the directory is as it
// was but for restoring/; from then on no node starts on it before it is done. It may be
// called again after whatever interrupted it.
func Restore(ctx context.Context, o RestoreOptions) (r Restored, err error) {
	o.Options = o.withDefaults()
	if err := durable.MkdirAll(durable.OS, o.Data, 0o750); err != nil {
		return r, err
	}
	lock, err := lockDir(o.Data)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	m := restorer{o: o, dir: o.Data, work: filepath.Join(o.Data, restoringDir)}
	ready, err := m.ready(ctx)
	if err != nil {
		return r, err
	}
	if err := m.exchange(ready); err != nil {
		return r, fmt.Errorf("put what was restored in place: %w; run the restore again", err)
	}
	return ready.Restored, nil
}

// checkRestored refuses a data directory that a restore left half changed.
func checkRestored(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, restoringDir, readyName)); err == nil {
		return fmt.Errorf("data directory %s: a restore was interrupted when it had everything: run qs-peer restore again to end it", dir)
	}
	return nil
}

// restorer restores one data directory.
type restorer struct {
	o         RestoreOptions
	dir, work string
}

// restoredDir is what the ready file says of work.
type restoredDir struct {
	Restored
	Names []string // what is to be moved up
}

// ready returns what is to be put in place, gathering it first if need be.
func (m *restorer) ready(ctx context.Context) (r restoredDir, err error) {
	path := filepath.Join(m.work, readyName)
	text, err := os.ReadFile(path)
	if err == nil {
		if err := json.Unmarshal(text, &r); err != nil {
			return r, fmt.Errorf("parse %s: %w", path, err)
		}
		return r, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if r.Restored, err = m.gather(ctx); err != nil {
		return r, err
	}
	entries, err := os.ReadDir(m.work)
	if err != nil {
		return r, err
	}
	for _, e := range entries {
		// What only the restore needs goes with restoring/.
		if e.Name() != lockName && e.Name() != followedName && !strings.HasPrefix(e.Name(), readyName) {
			r.Names = append(r.Names, e.Name())
		}
	}
	if err := m.step("gathered"); err != nil {
		return r, err
	}
	if err := writeJSON(path, r); err != nil {
		return r, err
	}
	return r, m.step("ready")
}

func (m *restorer) step(name string) error {
	if m.o.reached == nil {
		return nil
	}
	return m.o.reached(name)
}

// gather makes a data directory in work, a follower's.
func (m *restorer) gather(ctx context.Context) (r Restored, err error) {
	dataset, err := m.begin()
	if err != nil {
		return r, err
	}
	if err := m.step("begun"); err != nil {
		return r, err
	}
	promised, err := m.promised()
	if err != nil && !m.o.AcceptLoss {
		return r, err
	}
	known, err := m.follow(ctx, dataset)
	if err != nil {
		return r, err
	}
	if promised.Pos.Seq > known.seq {
		known = furthest{promised.Pos.Seq, "what the writer signed"}
	}
	log, err := txlog.Open(filepath.Join(m.work, logDir), txlog.Options{Logger: m.o.Logger.With("part", "log")})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	followed, told, err := m.salvage(log)
	if err != nil {
		return r, err
	}
	if told > known.seq {
		known = furthest{told, "the damaged log"}
	}
	r = Restored{Dataset: log.Dataset(), First: log.First(), Head: log.Head(), Salvaged: log.Head().Seq - followed}
	if known.seq > r.Head.Seq {
		if !m.o.AcceptLoss {
			return r, &LossError{Have: r.Head.Seq, Want: known.seq, Who: known.who}
		}
		r.Lost = known.seq - r.Head.Seq
		// The writer signs what it has anew; a promise of more would stop it.
		if err := durable.RemoveAll(durable.OS, filepath.Join(m.work, headsDir)); err != nil {
			return r, err
		}
	} else if err := keeps(log, promised.Pos); err != nil && !m.o.AcceptLoss {
		return r, err
	}
	if m.holds() {
		r.Aside = asidePrefix + time.Now().UTC().Format("20060102T150405Z")
	}
	return r, nil
}

// salvage appends what of the damaged log goes on from the end of log. It returns where
// that was, also if an earlier attempt appended already, and the last entry that the
// damaged log tells of.
func (m *restorer) salvage(log *txlog.Log) (followed, told uint64, err error) {
	path := filepath.Join(m.work, followedName)
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &followed)
	}
	if err != nil { // there is none, as a rule
		followed = log.Head().Seq
		if err := writeJSON(path, followed); err != nil {
			return 0, 0, err
		}
	}
	if err := m.step("followed"); err != nil {
		return 0, 0, err
	}
	got, err := txlog.Salvage(filepath.Join(m.dir, logDir), log.Head(), func(entries []txlog.Entry) error {
		_, err := log.AppendEntries(entries)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, 0, fmt.Errorf("read on in the damaged log: %w", err)
	case len(got.Unread) > 0 && !m.o.AcceptLoss:
		return 0, 0, fmt.Errorf("a file of the damaged log can not be read: %w; it may hold entries after %d that nobody else has: "+
			"make it readable, or give them up with --accept-loss; nothing was changed", errors.Join(got.Unread...), got.End.Seq)
	case len(got.Unread) > 0:
		m.o.Logger.Warn("a file of the damaged log can not be read: what only it holds is given up", "err", errors.Join(got.Unread...))
	}
	return followed, got.Told, m.step("salvaged")
}

// begin makes work a manager's data directory that follows the dataset, if it is
// not one already.
func (m *restorer) begin() (dataset txlog.DatasetID, err error) {
	var old node
	err = old.read(filepath.Join(m.dir, nodeName))
	if err != nil && old.read(filepath.Join(m.dir, copyName)) == nil {
		err = nil
	}
	switch {
	case err != nil:
		// It is lost, or damaged as the rest may be: then it does not matter what it said.
		m.o.Logger.Warn("the directory does not say whose it is", "dir", m.dir, "err", err)
	case old.id.Role != gossip.Manager || !old.id.Writer:
		return dataset, fmt.Errorf("data directory %s belongs to %s, a %s that follows: it repairs itself; or stop it, remove the directory, and start it", m.dir, old.id.Name, old.id.Role)
	default:
		dataset = old.dataset()
	}
	var attempt node
	if attempt.read(filepath.Join(m.work, nodeName)) == nil && !attempt.id.Writer {
		return dataset, nil // it goes on
	}
	// Otherwise it is what removing one left, or of a version that promoted it too early.
	if err := durable.RemoveAll(durable.OS, m.work); err != nil {
		return dataset, err
	}
	staged := m.work + ".new"
	if err := durable.RemoveAll(durable.OS, staged); err != nil {
		return dataset, err
	}
	if err := durable.MkdirAll(durable.OS, staged, 0o750); err != nil {
		return dataset, err
	}
	id := identity{Format: nodeFormat, Role: gossip.Manager, Name: m.o.Name}
	if !dataset.IsZero() {
		id.Dataset = dataset.String()
	}
	following := node{path: filepath.Join(staged, nodeName), id: id}
	if err := following.save(); err != nil {
		return dataset, err
	}
	return dataset, durable.Rename(durable.OS, staged, m.work)
}

// promised returns the furthest head that the writer signed, zero if none is known.
// It is kept from the others as long as its entries may have to be given up: a node
// that knows of it takes every other history for a fork.
func (m *restorer) promised() (heads.Signed, error) {
	copied := filepath.Join(m.work, "promised")
	defer durable.RemoveAll(durable.OS, copied)
	entries, err := os.ReadDir(filepath.Join(m.dir, headsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return heads.Signed{}, nil
	}
	if err == nil {
		err = durable.MkdirAll(durable.OS, copied, 0o750)
	}
	for _, e := range entries {
		var text []byte
		if err == nil {
			text, err = os.ReadFile(filepath.Join(m.dir, headsDir, e.Name()))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, e.Name()), text, 0o640)
		}
	}
	if err != nil {
		return heads.Signed{}, fmt.Errorf("read the signed heads: %w", err)
	}
	book, err := heads.OpenBook(copied, heads.BookOptions{Logger: m.o.Logger})
	if err != nil {
		return heads.Signed{}, err
	}
	return book.Newest(), book.Close()
}

// keeps returns an error if the log does not hold what was promised.
func keeps(log *txlog.Log, promised txlog.Pos) error {
	r, err := log.Reader(promised)
	switch {
	case err == nil:
		return r.Close()
	case is[*txlog.TrimmedError](err):
		return nil
	case is[*txlog.DivergedError](err):
		return fmt.Errorf("the fleet holds another history than the one that this writer signed up to entry %d: %w; "+
			"find out which is right; --accept-loss gives the writer's up", promised.Seq, err)
	}
	return err
}

// furthest is how far somebody knows the log to have gone.
type furthest struct {
	seq uint64
	who string
}

// follow follows the fleet until this node holds all that anybody sends, and returns
// how far the log went as far as anybody knows.
func (m *restorer) follow(ctx context.Context, dataset txlog.DatasetID) (known furthest, err error) {
	o := m.o.Options
	o.Data, o.Init, o.RESPAddr, o.RESPUnix = m.work, false, "", ""
	o.HTTPAddr = "127.0.0.1:0" // nobody is to take it for the writer
	o.SnapshotEvery = 0
	if len(o.Join) == 0 {
		return known, &OptionError{errors.New("restore: no member to join")}
	}
	p, err := Start(ctx, o)
	if err != nil {
		return known, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), restorePatience)
		defer cancel()
		err = errors.Join(err, p.Close(closing))
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last replica.Status
	moved, told := time.Now(), time.Time{}
	for {
		st := p.parts.replica.Status()
		if st.Applied != last.Applied || st.Done != last.Done || st.State != last.State {
			last, moved = st, time.Now()
		}
		var there bool
		if known, there, err = m.known(p.parts, dataset); err != nil {
			return known, err
		}
		head := p.parts.disk.log.Head()
		whole := there && st.State == replica.Serving && !head.IsZero() && st.Applied == head
		switch {
		case whole && head.Seq >= known.seq:
			return known, nil
		case whole && time.Since(moved) > restorePatience:
			return known, nil // nobody sends more
		case time.Since(moved) > 3*restorePatience:
			return known, fmt.Errorf("restore: nothing moves at entry %d of %d, state %s: %s", head.Seq, known.seq, st.State, st.Err)
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			m.o.Logger.Info("restoring", "state", st.State, "head", head.Seq, "of", known.seq, "fetched", st.Done, "of_bytes", st.Total)
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return known, p.Err()
		case <-ctx.Done():
			return known, ctx.Err()
		}
	}
}

// known returns how far the log went, and whether the member to restore from is
// there.
func (m *restorer) known(w *wiring, dataset txlog.DatasetID) (known furthest, there bool, err error) {
	if err := w.disk.proof.halt(); err != nil {
		return known, false, err
	}
	if w.disk.proof != nil {
		if h := w.disk.proof.guard.Furthest(); h.Pos.Seq > known.seq {
			known = furthest{h.Pos.Seq, "a head that the writer signed"}
		}
	}
	for _, other := range w.fleet.others() {
		from := m.o.From == "" || other.Name == m.o.From
		switch {
		case from && !dataset.IsZero() && !other.Dataset.IsZero() && other.Dataset != dataset:
			return known, false, fmt.Errorf("%s holds dataset %s, and %s belongs to dataset %s", other.Name, other.Dataset, m.dir, dataset)
		case isWriter(other) && (dataset.IsZero() || other.Dataset == dataset):
			return known, false, fmt.Errorf("%s takes the writes of dataset %s already: a second writer would fork it", other.Name, other.Dataset)
		}
		there = there || from && !other.Head.IsZero()
		// Anybody may claim anything: managers are believed, as they are anyway.
		if (from || other.Role == gossip.Manager) && other.Head.Seq > known.seq {
			known = furthest{other.Head.Seq, other.Name}
		}
	}
	return known, there, nil
}

// promote makes work the data directory of the writer. Before all is there it would start
// as one, and fork the dataset, when the restore is run again.
func (m *restorer) promote() error {
	n := node{path: filepath.Join(m.work, nodeName)}
	if err := n.read(n.path); err != nil {
		return err
	}
	n.id.Writer = true
	return n.save()
}

// holds reports whether there is anything to be kept of what was there.
func (m *restorer) holds() bool {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return true
	}
	for _, e := range entries {
		if m.replaced(e.Name()) {
			return true
		}
	}
	return false
}

// replaced reports whether a name in the data directory gives way to what was
// restored.
func (m *restorer) replaced(name string) bool {
	return name != lockName && name != restoringDir && !strings.HasPrefix(name, asidePrefix)
}

// exchange makes work the writer's, and moves what was there aside and what was restored
// up. It can be repeated from any point: of what has a name that was restored, only that
// is old in whose place something still waits.
func (m *restorer) exchange(r restoredDir) error {
	there, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	waits := func(name string) bool {
		_, err := os.Lstat(filepath.Join(m.work, name))
		return err == nil
	}
	if waits(nodeName) {
		if err := m.promote(); err != nil {
			return err
		}
		if err := m.step("promoted"); err != nil {
			return err
		}
	}
	for _, e := range there {
		if !m.replaced(e.Name()) || slices.Contains(r.Names, e.Name()) && !waits(e.Name()) {
			continue
		}
		aside := filepath.Join(m.dir, r.Aside)
		if err := durable.MkdirAll(durable.OS, aside, 0o750); err != nil {
			return err
		}
		if err := durable.Rename(durable.OS, filepath.Join(m.dir, e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return err
		}
		if err := m.step("aside " + e.Name()); err != nil {
			return err
		}
	}
	for _, name := range r.Names {
		if !waits(name) {
			continue
		}
		if err := durable.Rename(durable.OS, filepath.Join(m.work, name), filepath.Join(m.dir, name)); err != nil {
			return err
		}
		if err := m.step("up " + name); err != nil {
			return err
		}
	}
	return durable.RemoveAll(durable.OS, m.work)
}
