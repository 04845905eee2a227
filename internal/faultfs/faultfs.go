// Package faultfs is an in-memory durable.FS for tests. It fails the operations
// it is told to, runs out of space, and knows what was fsynced: it can produce
// the file system as a power cut might leave it.
//
// Its model is harsher than most disks. What was not fsynced may be there or
// not, sector by sector and in any order; a file's length may be there without
// its content; names may be there or not independently of each other, except
// that a rename is atomic; fsyncing a file does not make its name durable. After
// a failed fsync the bytes can be read, but another fsync will not write them.
//
// Directories that lead to a file are durable once they were fsynced
// themselves, like any name.
package faultfs

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// Kind is what an operation does.
type Kind string

// Kinds of operations. All but Read, Open and Stat change something.
const (
	Create   Kind = "create" // OpenFile that makes or truncates a file
	Write    Kind = "write"
	Truncate Kind = "truncate"
	Sync     Kind = "sync"
	Rename   Kind = "rename"
	Remove   Kind = "remove"
	Mkdir    Kind = "mkdir"
	SyncDir  Kind = "syncdir"
	Read     Kind = "read"
	Open     Kind = "open" // OpenFile of a file that it leaves as it is
	Stat     Kind = "stat"
)

// Op is an operation that is about to happen.
type Op struct {
	N    int // ordinal among the operations that change something, from 1; 0 for the others
	Kind Kind
	Name string // of Rename: the new name
}

// Fault is what goes wrong with an operation. The zero value is nothing.
type Fault struct {
	Err     error // what the caller gets
	Applied bool  // the operation has its effect nevertheless
	Short   int   // of a Write that is not applied: bytes that are written
}

// FS is a file system in memory. It may be used concurrently.
type FS struct {
	mu     sync.Mutex // guards everything below, and every node
	root   *node
	ops    int
	inject func(Op) Fault
	space  int64 // bytes left, negative: unlimited
}

var _ durable.FS = (*FS)(nil)

// New returns an empty file system.
func New() *FS { return &FS{root: newDir(), space: -1} }

// Inject makes f decide the fate of every operation from now on; nil ends that.
func (f *FS) Inject(fault func(Op) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inject = fault
}

// At fails operation n only.
func At(n int, fault Fault) func(Op) Fault {
	return func(op Op) Fault {
		if op.N == n {
			return fault
		}
		return Fault{}
	}
}

// From fails operation n with first, and with its error everything after.
func From(n int, first Fault) func(Op) Fault {
	return func(op Op) Fault {
		switch {
		case op.N == n:
			return first
		case op.N > n:
			return Fault{Err: first.Err}
		}
		return Fault{}
	}
}

// Ops returns how many operations have changed, or failed to change, something.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// SetSpace lets files grow by n more bytes; a negative n by any number. Bytes of
// files that are removed or cut become free.
func (f *FS) SetSpace(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space = n
}

// node is a file or a directory.
type node struct {
	// of a file
	content []byte   // as it is read
	synced  []byte   // as it is on the disk for sure
	pending []Change // between the two, if no fsync failed

	// of a directory
	names   map[string]*node // nil for a file
	durable map[string]*node
	moves   []move
}

// Change is a write to a file at Off, or (nil Data) a truncation to Off.
type Change struct {
	Off  int64
	Data []byte
}

// move is an atomic change of names; nil nodes are removed.
type move map[string]*node

func newDir() *node {
	return &node{names: map[string]*node{}, durable: map[string]*node{}}
}

// Apply makes the change to a file's content, which it may overwrite, and returns that.
func (c Change) Apply(b []byte) []byte {
	end := c.Off + int64(len(c.Data))
	if c.Data == nil && end < int64(len(b)) {
		return b[:end:end]
	}
	if grow := end - int64(len(b)); grow > 0 {
		b = append(b, make([]byte, grow)...)
	}
	copy(b[c.Off:], c.Data)
	return b
}

func (m move) apply(names map[string]*node) {
	for name, n := range m {
		if n == nil {
			delete(names, name)
		} else {
			names[name] = n
		}
	}
}

// change applies and remembers c.
func (n *node) change(c Change) {
	n.content = c.Apply(n.content)
	n.pending = append(n.pending, c)
}

func (n *node) move(m move) {
	m.apply(n.names)
	n.moves = append(n.moves, m)
}

// do counts the operation and lets effect happen as the injected fault wants.
// effect gets the number of bytes to write; negative: all. The caller holds mu.
func (f *FS) do(kind Kind, name string, effect func(short int) error) error {
	op := Op{Kind: kind, Name: name}
	if kind != Read && kind != Open && kind != Stat {
		f.ops++
		op.N = f.ops
	}
	var fault Fault
	if f.inject != nil {
		fault = f.inject(op)
	}
	var err error
	switch {
	case fault.Err == nil || fault.Applied:
		err = effect(-1)
	case fault.Short > 0:
		err = effect(fault.Short)
	}
	if fault.Err != nil {
		err = fault.Err
	}
	if err != nil {
		return &fs.PathError{Op: string(kind), Path: name, Err: err}
	}
	return nil
}

func split(name string) []string {
	name = filepath.Clean(string(filepath.Separator) + name)
	return strings.FieldsFunc(name, func(r rune) bool { return r == filepath.Separator })
}

// find returns the node of name.
func (f *FS) find(name string) (*node, error) {
	n := f.root
	for _, elem := range split(name) {
		if n.names == nil {
			return nil, syscall.ENOTDIR
		}
		if n = n.names[elem]; n == nil {
			return nil, fs.ErrNotExist
		}
	}
	return n, nil
}

// parent returns the directory that holds name, and its name there.
func (f *FS) parent(name string) (*node, string, error) {
	dir, err := f.find(filepath.Dir(filepath.Clean(name)))
	if err == nil && dir.names == nil {
		err = syscall.ENOTDIR
	}
	return dir, filepath.Base(name), err
}

// OpenFile implements durable.FS.
func (f *FS) OpenFile(name string, flag int, _ fs.FileMode) (durable.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	switch {
	case err == nil && n.names != nil:
		err = syscall.EISDIR
	case err == nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		err = fs.ErrExist
	case err == nil && flag&os.O_TRUNC != 0:
		err = f.do(Create, name, func(int) error {
			f.free(len(n.content))
			n.change(Change{})
			return nil
		})
	case err == nil:
		err = f.do(Open, name, func(int) error { return nil })
	case err == fs.ErrNotExist && flag&os.O_CREATE != 0:
		err = f.do(Create, name, func(int) error {
			dir, base, err := f.parent(name)
			if err != nil {
				return err
			}
			n = &node{}
			dir.move(move{base: n})
			return nil
		})
	}
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &file{fs: f, name: name, node: n, writable: flag&(os.O_WRONLY|os.O_RDWR) != 0}, nil
}

func pathError(op, name string, err error) error {
	if _, ok := err.(*fs.PathError); ok {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func (f *FS) free(n int) {
	if f.space >= 0 {
		f.space += int64(n)
	}
}

// Stat implements durable.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var n *node
	err := f.do(Stat, name, func(int) (err error) {
		n, err = f.find(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return n.info(filepath.Base(name)), nil
}

// Rename implements durable.FS.
func (f *FS) Rename(oldname, newname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.do(Rename, newname, func(int) error {
		n, err := f.find(oldname)
		if err != nil {
			return err
		}
		from, oldbase, err := f.parent(oldname)
		if err != nil {
			return err
		}
		to, newbase, err := f.parent(newname)
		if err != nil {
			return err
		}
		if was := to.names[newbase]; was != nil {
			if (was.names != nil) != (n.names != nil) || len(was.names) > 0 {
				return fs.ErrExist
			}
			f.free(len(was.content))
		}
		if from == to {
			from.move(move{oldbase: nil, newbase: n})
			return nil
		}
		from.move(move{oldbase: nil})
		to.move(move{newbase: n})
		return nil
	})
}

// Remove implements durable.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.do(Remove, name, func(int) error {
		n, err := f.find(name)
		if err != nil {
			return err
		}
		if len(n.names) > 0 {
			return syscall.ENOTEMPTY
		}
		dir, base, err := f.parent(name)
		if err != nil {
			return err
		}
		f.free(len(n.content))
		dir.move(move{base: nil})
		return nil
	})
}

// MkdirAll implements durable.FS.
func (f *FS) MkdirAll(name string, _ fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.do(Mkdir, name, func(int) error {
		n := f.root
		for _, elem := range split(name) {
			if n.names[elem] == nil {
				n.move(move{elem: newDir()})
			}
			if n = n.names[elem]; n.names == nil {
				return syscall.ENOTDIR
			}
		}
		return nil
	})
}

// ReadDir implements durable.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err == nil && n.names == nil {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	var entries []fs.DirEntry
	for _, base := range slices.Sorted(maps.Keys(n.names)) {
		entries = append(entries, fs.FileInfoToDirEntry(n.names[base].info(base)))
	}
	return entries, nil
}

// SyncDir implements durable.FS.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.do(SyncDir, name, func(int) error {
		n, err := f.find(name)
		if err != nil {
			return err
		}
		if n.names == nil {
			return syscall.ENOTDIR
		}
		for _, m := range n.moves {
			m.apply(n.durable)
		}
		n.moves = nil
		return nil
	})
}
