package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// record is a line of issued.jsonl.
type record struct {
	Time     time.Time `json:"time"`
	Identity string    `json:"identity"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Dir      string    `json:"dir"`
}

// register writes down that a certificate is issued.
func (a *Authority) register(files *staged, c *x509.Certificate, id trust.Identity, out string) error {
	path := filepath.Join(a.dir, issuedFile)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	line, err := json.Marshal(record{time.Now().UTC().Truncate(time.Second), id.String(), c.SerialNumber.Text(16), c.NotAfter, out})
	if err != nil {
		return err
	}
	return files.add(path, append(append(text, line...), '\n'), privateMode)
}

// nodeDirs returns the directories of nodes that were issued and are still there.
func (a *Authority) nodeDirs() ([]string, error) {
	path := filepath.Join(a.dir, issuedFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	isNode := map[string]bool{} // by directory, as it was issued last
	n := 0
	for line := range bytes.Lines(text) {
		n++
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		id, err := trust.ParseIdentity(r.Identity)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		isNode[r.Dir] = id.Role.IsNode()
	}
	var dirs []string
	for dir, node := range isNode {
		if _, err := os.Stat(filepath.Join(dir, certFile)); err == nil && node {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs, nil
}

// spreadTrusted makes every node's copy of trusted-keys equal to the authority's. It
// returns the directories where that changed something, and where it failed.
func (a *Authority) spreadTrusted() (updated, stale []string, err error) {
	keys, err := os.ReadFile(a.trusted())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil // no manager yet
	}
	if err != nil {
		return nil, nil, err
	}
	dirs, err := a.nodeDirs()
	if err != nil {
		return nil, nil, err
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, trustedFile)
		if held, err := os.ReadFile(path); err == nil && bytes.Equal(held, keys) {
			continue
		}
		var file staged
		err := file.add(path, keys, publicMode)
		if err == nil {
			err = file.commit()
		}
		file.discard()
		if err != nil {
			stale = append(stale, dir)
		} else {
			updated = append(updated, dir)
		}
	}
	return updated, stale, nil
}

// lock keeps other processes, and other goroutines, from the authority's directory
// until unlock is called.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
