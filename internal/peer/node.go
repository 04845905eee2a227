package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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

	// nodeFormat is the version of the data directory's layout.
	nodeFormat = 1
)

// dirLock is the hold on a data directory. It goes with the process, however
// that ends; a process that ends in order empties the file, too.
type dirLock struct {
	file *os.File
	// suspect: whoever held it last crashed, and nobody has looked since at
	// what that left.
	suspect bool
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
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l := &dirLock{file: f, suspect: info.Size() > 0}
	id := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if _, err := f.WriteAt(id, 0); err != nil {
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
	var err error
	if !l.suspect {
		err = l.file.Truncate(0)
	}
	return errors.Join(err, l.file.Close())
}

// identity is what node.json says: what the data directory is, for good.
type identity struct {
	Format  int         `json:"format"`
	Role    gossip.Role `json:"role"`
	Name    string      `json:"name"`
	Writer  bool        `json:"writer"`            // this manager takes the writes
	Dataset string      `json:"dataset,omitempty"` // empty until it is known
}

// node is node.json on disk and in memory.
type node struct {
	path string

	mu sync.Mutex // guards id
	id identity
}

// openNode reads node.json, or makes it for a new directory, and compares it
// with what the node is started as.
func openNode(dir string, o *Options) (*node, error) {
	n := &node{path: filepath.Join(dir, nodeName)}
	text, err := os.ReadFile(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := checkFresh(dir); err != nil {
			return nil, err
		}
		n.id = identity{
			Format: nodeFormat,
			Role:   o.Role,
			Name:   o.Name,
			Writer: o.Role == gossip.Manager && (o.Init || len(o.Join) == 0),
		}
		return n, n.save()
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", n.path, err)
	}
	if err := n.parse(text); err != nil {
		return nil, err
	}
	return n, n.reconcile(o)
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

func (n *node) parse(text []byte) error {
	// The format first: a newer file may hold anything else.
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return fmt.Errorf("parse %s: %w", n.path, err)
	}
	if version.Format > nodeFormat {
		return fmt.Errorf("%s has format %d, and this version of qs-peer knows formats up to %d: run a newer version", n.path, version.Format, nodeFormat)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&n.id); err != nil {
		return fmt.Errorf("parse %s: %w", n.path, err)
	}
	if n.id.Format < 1 {
		return fmt.Errorf("parse %s: format %d is not one", n.path, n.id.Format)
	}
	if n.id.Dataset != "" {
		if _, err := txlog.ParseDatasetID(n.id.Dataset); err != nil {
			return fmt.Errorf("parse %s: %w", n.path, err)
		}
	}
	return nil
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
		n.id.Dataset = id.String()
		return n.save()
	}
	return fmt.Errorf("data directory %s belongs to dataset %s, and what it was given is of dataset %s: join the right fleet, or use an empty directory",
		filepath.Dir(n.path), n.id.Dataset, id)
}

func (n *node) save() error { return writeJSON(n.path, n.id) }

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return durable.WriteFile(durable.OS, path, append(text, '\n'), 0o640)
}
