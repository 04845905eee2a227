package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	lockName  = "LOCK"
	nodeName  = "node.json"
	addrsName = "addrs.json"
	copyName  = nodeName + ".copy" // in case node.json is damaged

	// nodeFormat is the version of the data directory's layout.
	nodeFormat = 1
)

// dirLock is the hold on a data directory. It goes with the process, however
// that ends; a process that ends in order empties the file, too.
type dirLock struct {
	file *os.File
}

// lockDir takes the data directory for this process.
func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	l, err := takeLock(f)
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by %s: stop it, or use another directory", dir, holder(f.Name()))
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return l, nil
}

func takeLock(f *os.File) (*dirLock, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	l := &dirLock{file: f}
	id := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if _, err := f.WriteAt(id, 0); err != nil && !noRoom(err) { // the lock holds without it
		return nil, err
	}
	return l, f.Truncate(int64(len(id)))
}

// holder says who has the lock.
func holder(path string) string {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		text, _ := io.ReadAll(io.LimitReader(f, 20))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return fmt.Sprintf("process %d", pid)
		}
	}
	return "another process"
}

// Close gives the directory back.
func (l *dirLock) Close() error {
	return errors.Join(l.file.Truncate(0), l.file.Close())
}

// identity is what node.json says: what the data directory is, for good.
type identity struct {
	Format  int         `json:"format"`
	Role    gossip.Role `json:"role"`
	Name    string      `json:"name"`
	Writer  bool        `json:"writer"`            // this manager takes the writes
	Dataset string      `json:"dataset,omitempty"` // empty until it is known
	Sum     string      `json:"sum,omitempty"`     // CRC-32C of the rest as compact JSON, 8 hexadecimal digits
}

// sum returns what Sum should be.
func (id identity) sum() string {
	id.Sum = ""
	text, _ := json.Marshal(id) // of words only: never fails
	return fmt.Sprintf("%08x", crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)))
}

// node is node.json on disk and in memory.
type node struct {
	path string

	mu sync.Mutex // guards id
	id identity
}

// openNode reads node.json, or makes it for a new directory, and compares it
// with what the node is started as. There is a copy for when it is damaged.
func openNode(dir string, o *Options) (*node, error) {
	n := &node{path: filepath.Join(dir, nodeName)}
	err := n.read(n.path)
	if err == nil {
		if err := n.reconcile(o); err != nil {
			return nil, err
		}
		return n, n.keepCopy()
	}
	if newer := (*newerFormatError)(nil); errors.As(err, &newer) {
		return nil, err
	}
	switch copyErr := n.read(filepath.Join(dir, copyName)); {
	case copyErr == nil:
		o.Logger.Error("the file that says what this directory is was damaged: it is written again from its copy; check the disk", "err", err)
		if err := n.save(); err != nil {
			return nil, err
		}
		return n, n.reconcile(o)
	case !errors.Is(err, fs.ErrNotExist) && (o.Role != gossip.Worker || errors.Is(copyErr, fs.ErrNotExist)):
		return nil, fmt.Errorf("%w; nor does its copy help: %w", err, copyErr)
	case !errors.Is(err, fs.ErrNotExist):
		// A worker is nothing that its options and its log do not say.
		o.Logger.Error("the file that says what this directory is was damaged, and its copy is, too: it is made anew; check the disk", "err", err)
	default:
		if err := checkFresh(dir); err != nil {
			return nil, err
		}
	}
	n.id = identity{
		Format: nodeFormat,
		Role:   o.Role,
		Name:   o.Name,
		Writer: o.Role == gossip.Manager && (o.Init || len(o.Join) == 0),
	}
	return n, n.save()
}

func (n *node) read(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := n.parse(text); err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	return nil
}

// parse makes n what a file says.
func (n *node) parse(text []byte) (err error) {
	n.id, err = parseIdentity(text)
	return err
}

// keepCopy makes a copy where there is none.
func (n *node) keepCopy() error {
	if _, err := os.Stat(n.copyPath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return n.save()
}

// checkFresh refuses a directory that holds data but does not say whose.
func checkFresh(dir string) error {
	for _, sub := range []string{logDir, storeDir} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("data directory %s holds %s/ but no %s: restore that file, or start with an empty directory", dir, sub, nodeName)
		}
	}
	return nil
}

// newerFormatError is about a directory of a version to come.
type newerFormatError struct{ format int }

func (e *newerFormatError) Error() string {
	return fmt.Sprintf("has format %d, and this version of qs-peer knows formats up to %d: run a newer version", e.format, nodeFormat)
}

func parseIdentity(text []byte) (id identity, err error) {
	// The format first: a newer file may hold anything else.
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return id, fmt.Errorf("can not be parsed: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err = d.Decode(&id)
	sound := id.Sum == "" || id.Sum == id.sum()               // older versions wrote none
	if version.Format > nodeFormat && (err != nil || sound) { // otherwise it is damage
		return id, &newerFormatError{version.Format}
	}
	switch {
	case err != nil:
		return id, fmt.Errorf("can not be parsed: %w", err)
	case !sound:
		return id, fmt.Errorf("is damaged: its sum is %s, and what it says has %s", id.Sum, id.sum())
	case id.Format < 1:
		return id, fmt.Errorf("can not be parsed: format %d is not one", id.Format)
	}
	id.Sum = "" // it is of the file
	if id.Dataset != "" {
		if _, err := txlog.ParseDatasetID(id.Dataset); err != nil {
			return id, fmt.Errorf("can not be parsed: %w", err)
		}
	}
	return id, nil
}

// reconcile refuses to start as something that the directory is not.
func (n *node) reconcile(o *Options) error {
	dir := filepath.Dir(n.path)
	switch {
	case n.id.Role != o.Role:
		return fmt.Errorf("data directory %s belongs to a %s (%s), and this is a %s: start it as a %s, or use another directory",
			dir, n.id.Role, n.id.Name, o.Role, n.id.Role)
	case o.Init && !n.id.Writer && n.id.Dataset != "":
		return fmt.Errorf("data directory %s follows dataset %s, and --init would create another: leave --init out, or use an empty directory",
			dir, n.id.Dataset)
	}
	becomesWriter := o.Init && !n.id.Writer
	if n.id.Name == o.Name && !becomesWriter {
		return nil
	}
	n.id.Name = o.Name
	n.id.Writer = n.id.Writer || becomesWriter
	return n.save()
}

func (n *node) writer() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.id.Writer
}

// dataset returns the dataset that the directory belongs to, zero if none yet.
func (n *node) dataset() txlog.DatasetID {
	n.mu.Lock()
	defer n.mu.Unlock()
	id, _ := txlog.ParseDatasetID(n.id.Dataset) // parse checked it; empty is zero
	return id
}

// bind records the dataset that the directory belongs to from now on.
func (n *node) bind(id txlog.DatasetID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch n.id.Dataset {
	case id.String():
		return nil
	case "":
		bound := n.id
		bound.Dataset = id.String()
		if err := n.write(bound); err != nil {
			return err
		}
		n.id = bound
		return nil
	}
	return fmt.Errorf("data directory %s belongs to dataset %s, and what it was given is of dataset %s: join the right fleet, or use an empty directory",
		filepath.Dir(n.path), n.id.Dataset, id)
}

func (n *node) save() error { return n.write(n.id) }

// write writes node.json and then its copy, so that there is always a whole one.
func (n *node) write(id identity) error {
	id.Sum = id.sum()
	if err := writeJSON(n.path, id); err != nil {
		return err
	}
	return writeJSON(n.copyPath(), id)
}

func (n *node) copyPath() string { return filepath.Join(filepath.Dir(n.path), copyName) }

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return durable.WriteFile(durable.OS, path, append(text, '\n'), 0o640)
}
