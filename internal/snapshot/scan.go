package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/signing"
)

// maxMetainfo is the size of the largest .torrent file that is read, in bytes.
const maxMetainfo = 16 << 20

// DamagedError means that the files of a snapshot do not hold together.
type DamagedError struct {
	Name  string   // of the snapshot
	Files []string // those that are there, the manifest last
	Err   error    // the first thing found wrong

	manifest *Manifest // nil if it can not be read; with note
	note     []byte
	torrent  *chunker.Torrent // nil if it can not be read or is not the manifest's
}

func (e *DamagedError) Error() string { return fmt.Sprintf("%s is damaged: %v", e.Name, e.Err) }

func (e *DamagedError) Unwrap() error { return e.Err }

// Find returns the snapshots in dir, newest first, and those that are damaged.
// It changes nothing, so it is safe beside a Repo of another process.
func Find(dir string) (sound []*Snapshot, damaged []*DamagedError, err error) {
	c, err := scan(durable.OS, dir)
	return c.sound, c.damaged, err
}

// content is what a snapshots directory holds.
type content struct {
	sound     []*Snapshot // newest first
	damaged   []*DamagedError
	leftovers []string // files that a crash left half-made
}

func scan(fsys durable.FS, dir string) (content, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return content{}, fmt.Errorf("list snapshot directory: %w", err)
	}
	byName := make(map[string][]string)
	for _, e := range entries {
		if name, _, _, ok := splitName(e.Name()); ok && e.Type().IsRegular() {
			byName[name] = append(byName[name], e.Name())
		}
	}
	var c content
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		files := byName[name]
		complete := slices.Contains(files, name+manifestExt)
		d := &DamagedError{Name: name}
		for _, file := range files {
			switch ext := strings.TrimPrefix(file, name); {
			case ext == partExt, strings.HasSuffix(ext, damagedExt):
			case complete && (ext == dataExt || ext == torrentExt):
				d.Files = append(d.Files, file)
			case ext == manifestExt:
			default:
				c.leftovers = append(c.leftovers, file)
			}
		}
		if !complete {
			continue
		}
		// The manifest last: a crash half-way through setting aside must not make
		// the rest look like leftovers.
		d.Files = append(d.Files, name+manifestExt)
		s, err := load(fsys, dir, name)
		if err != nil {
			d.Err = err
			if s.Note != nil {
				d.manifest, d.note, d.torrent = &s.Manifest, s.Note, s.Torrent
			}
			c.damaged = append(c.damaged, d)
			continue
		}
		c.sound = append(c.sound, s)
	}
	slices.SortFunc(c.sound, newestFirst)
	return c, nil
}

// load reads the small files of a snapshot and compares them with each other
// and with the size of the large one. With an error it returns what it read so far
// that is sound.
func load(fsys durable.FS, dir, name string) (*Snapshot, error) {
	s := &Snapshot{Path: filepath.Join(dir, name+dataExt)}
	note, err := readFile(fsys, filepath.Join(dir, name+manifestExt), signing.MaxNote)
	if err != nil {
		return s, err
	}
	m, err := ParseNote(note)
	if err != nil {
		return s, err
	}
	if Name(m.Pos) != name {
		return s, fmt.Errorf("its manifest is of %s", Name(m.Pos))
	}
	s.Manifest, s.Note = *m, note
	metainfo, err := readFile(fsys, filepath.Join(dir, name+torrentExt), maxMetainfo)
	if err != nil {
		return s, err
	}
	t, err := chunker.Parse(metainfo)
	if err != nil {
		return s, fmt.Errorf("read torrent: %w", err)
	}
	if err := m.Matches(t); err != nil {
		return s, err
	}
	s.Torrent = t
	info, err := fsys.Stat(s.Path)
	if err != nil {
		return s, missing(err)
	}
	return s, m.checkSize(info.Size())
}

func (m *Manifest) checkSize(size int64) error {
	if size != m.Size {
		return fmt.Errorf("the file is %d bytes long; its manifest says %d", size, m.Size)
	}
	return nil
}

func readFile(fsys durable.FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, missing(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s is %d bytes long; at most %d are allowed", path, size, limit)
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, io.NewSectionReader(f, 0, size))
	return b.Bytes(), err
}

func missing(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing", filepath.Base(path.Path))
	}
	return err
}
