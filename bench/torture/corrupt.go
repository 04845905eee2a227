package torture

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// harm is what is done to a file's bytes.
type harm string

const (
	bitFlip   harm = "bit flip"
	zeroPage  harm = "zeroed page"
	swapPages harm = "swapped pages"
	truncate  harm = "truncation"
	grow      harm = "growth"
)

var harms = []harm{bitFlip, zeroPage, swapPages, truncate, grow}

const page = 4096

// do harms a file in place: whoever has it open or mapped sees it, too. It returns about
// how many bytes it changed.
func (h harm) do(file string, rng *rand.Rand) (changed int64, err error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if h == grow {
		junk := make([]byte, 1+rng.IntN(2*page))
		for i := range junk {
			junk[i] = byte(rng.Uint32())
		}
		_, err := f.WriteAt(junk, size)
		return int64(len(junk)), err
	}
	if size == 0 {
		return 0, nil
	}
	pages := (size + page - 1) / page
	switch h {
	case bitFlip:
		var b [1]byte
		at := rng.Int64N(size)
		if _, err := f.ReadAt(b[:], at); err != nil {
			return 0, err
		}
		b[0] ^= 1 << rng.IntN(8)
		_, err := f.WriteAt(b[:], at)
		return 1, err
	case zeroPage:
		at := rng.Int64N(pages) * page
		n := min(page, size-at)
		_, err := f.WriteAt(make([]byte, n), at)
		return n, err
	case swapPages:
		if pages < 3 { // there are no two whole ones: its beginning and its end, then
			return swap(f, 0, size-size/2, size/2)
		}
		a := rng.Int64N(pages - 1)
		b := (a + 1 + rng.Int64N(pages-2)) % (pages - 1)
		return swap(f, a*page, b*page, page)
	case truncate:
		keep := rng.Int64N(size)
		return size - keep, f.Truncate(keep)
	}
	return 0, fmt.Errorf("no way to do a %s", h)
}

// swap exchanges n bytes at a and b, which do not overlap.
func swap(f *os.File, a, b, n int64) (int64, error) {
	first, second := make([]byte, n), make([]byte, n)
	for _, read := range []struct {
		into []byte
		at   int64
	}{{first, a}, {second, b}} {
		if _, err := f.ReadAt(read.into, read.at); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
	}
	if _, err := f.WriteAt(second, a); err != nil {
		return 0, err
	}
	_, err := f.WriteAt(first, b)
	return 2 * n, err
}

// zeroTail zeroes the second half of a file.
func zeroTail(file string) (err error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	half := info.Size() / 2 / page * page
	_, err = f.WriteAt(make([]byte, info.Size()-half), half)
	return err
}
