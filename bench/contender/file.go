package contender

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/qs-peer/qs-peer/chunker"
)

// fileName is that of the file which is distributed.
const fileName = "file"

// File is what contenders distribute: random bytes, which nothing on the way can
// make shorter.
type File struct {
	Path     string
	Size     int64
	sum      [sha256.Size]byte
	metainfo []byte // the .torrent
}

// NewFile makes a file of size bytes in dir, which has to be empty.
func NewFile(dir string, size int64) (_ *File, err error) {
	f := &File{Path: filepath.Join(dir, fileName), Size: size}
	hasher, err := chunker.NewHasher(fileName, size)
	if err != nil {
		return nil, err
	}
	defer hasher.Abort()
	out, err := os.Create(f.Path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	random := rand.NewChaCha8([32]byte{2})
	if _, err := io.Copy(io.MultiWriter(out, hasher), io.LimitReader(random, size)); err != nil {
		return nil, err
	}
	torrent, sum, err := hasher.Finish()
	if err != nil {
		return nil, err
	}
	f.sum, f.metainfo = sum, torrent.Metainfo()
	return f, nil
}

// same returns an error unless the file at path has the same bytes.
func (f *File) same(path string) error {
	copied, err := os.Open(path)
	if err != nil {
		return err
	}
	defer copied.Close()
	h := sha256.New()
	n, err := io.Copy(h, copied)
	if err != nil {
		return err
	}
	if n != f.Size || !bytes.Equal(h.Sum(nil), f.sum[:]) {
		return fmt.Errorf("%s, of %d bytes, differs from the source's", filepath.Base(path), n)
	}
	return nil
}
