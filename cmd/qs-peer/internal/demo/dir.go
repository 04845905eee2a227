package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// DirError refuses a directory for the demo.
type DirError struct {
	Dir, Reason string
}

func (e *DirError) Error() string { return fmt.Sprintf("--dir %s: %s", e.Dir, e.Reason) }

// prepareDir makes the directory; remove takes away what the demo made.
func (o *Options) prepareDir() (remove func() error, err error) {
	if o.Dir == "" {
		o.Dir, err = os.MkdirTemp("", "qs-peer-demo-")
		return func() error { return os.RemoveAll(o.Dir) }, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(o.Dir)
	switch {
	case err == nil && len(entries) > 0:
		return nil, &DirError{o.Dir, "is not empty; the demo needs a directory of its own"}
	case err == nil: // ours to fill, not to remove
		return func() error {
			entries, err := os.ReadDir(o.Dir)
			for _, e := range entries {
				err = errors.Join(err, os.RemoveAll(filepath.Join(o.Dir, e.Name())))
			}
			return err
		}, nil
	case errors.Is(err, os.ErrNotExist):
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			return nil, &DirError{o.Dir, err.Error()}
		}
		return func() error { return os.RemoveAll(o.Dir) }, nil
	default:
		return nil, &DirError{o.Dir, err.Error()}
	}
}
