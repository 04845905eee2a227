package trust

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxFile bounds a file of certificates or keys, in bytes.
const maxFile = 1 << 20

// ReadPrivate reads a file that holds a secret, at most 1 MiB. It refuses one that
// others than its owner can read or write; if that is root, its group may read, too.
func ReadPrivate(path string) ([]byte, error) {
	return readFile(path, func(info os.FileInfo) error {
		allowed := os.FileMode(0o700)
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == 0 {
			allowed = 0o740
		}
		if mode := info.Mode().Perm(); mode&^allowed != 0 {
			return fmt.Errorf("%s holds a key and has mode %#o, which lets others at it: chmod 600 %s", path, mode, path)
		}
		return nil
	})
}

func readFile(path string, check func(os.FileInfo) error) ([]byte, error) {
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
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	if check != nil {
		if err := check(info); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return b, nil
}
