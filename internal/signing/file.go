package signing

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// maxFile is the size of the largest file of keys that is read, in bytes.
const maxFile = 64 << 10

// watchEvery is how often a key file is looked at.
const watchEvery = time.Second

// file is a key file, and what it held when it was last looked at.
type file struct {
	path string
	read func(path string) ([]byte, error)
	use  func(content []byte) error

	held   []byte
	failed string // how the last look ended, empty: well
}

func (f *file) load() error {
	content, err := f.read(f.path)
	if err == nil {
		err = f.use(content)
	}
	f.held = content
	return err
}

// readPublic returns the content of a regular file that only its owner and its
// group can write.
func readPublic(path string) ([]byte, error) {
	// A pipe of that name must not make us wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case mode.Perm()&0o002 != 0:
		return nil, fmt.Errorf("%s says whom this node believes and has mode %#o, which lets everybody write it: chmod 644 %s", path, mode.Perm(), path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// watch looks at the file until ctx ends. told, if not nil, hears of each change:
// nil, or why what was used before still is. One error is told once, and nil when
// it is over.
func (f *file) watch(ctx context.Context, told func(error)) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f.look(told)
		case <-ctx.Done():
			return
		}
	}
}

func (f *file) look(told func(error)) {
	content, err := f.read(f.path)
	if err == nil {
		if f.failed == "" && bytes.Equal(content, f.held) {
			return
		}
		err = f.use(content)
	}
	before := f.failed
	if err != nil {
		f.failed = err.Error()
	} else {
		f.held, f.failed = content, ""
	}
	if told != nil && (err == nil || f.failed != before) {
		told(err)
	}
}
