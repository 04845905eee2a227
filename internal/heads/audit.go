package heads

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/qs-peer/qs-peer/internal/signing"
)

// BookReport is what Audit found.
type BookReport struct {
	Heads  []Signed // those that are kept, in order, and the newest one
	Newest Signed   // zero: there is none
	// Strange are the heads that are signed by none of the trusted keys, as by one from
	// before keys were rotated. They are worth nothing, and do no harm.
	Strange int
	// Damaged is what is not sound. The next start drops it, and nothing is lost by
	// that: newer heads cover what those covered.
	Damaged []error
}

// Audit reads the book in dir, and changes nothing. With trusted keys it verifies the
// heads' signatures, too. No book there is an empty report.
func Audit(dir string, t *signing.Trusted) (BookReport, error) {
	var r BookReport
	take := func(h Signed) {
		if t != nil {
			_, err := verify(t, h.Note, h.Dataset)
			if refused, ok := errors.AsType[*signing.RefusedError](err); ok && refused.Reason == signing.UnknownKey {
				r.Strange++
				return
			}
			if err != nil {
				r.Damaged = append(r.Damaged, fmt.Errorf("the head of entry %d: %w", h.Pos.Seq, err))
				return
			}
		}
		r.Heads = append(r.Heads, h)
		if newer(h, r.Newest) {
			r.Newest = h
		}
	}
	kept, err := readIfThere(filepath.Join(dir, keptName))
	if err != nil {
		return r, err
	}
	if !keptBegins(kept) {
		if len(kept) > 0 {
			r.Damaged = append(r.Damaged, fmt.Errorf("%s does not begin as it should", keptName))
		}
	} else if end, err := eachKept(kept, func(h Signed, _ int64) { take(h) }); err != nil {
		return r, err
	} else if rest := int64(len(kept)) - end; rest > 0 {
		r.Damaged = append(r.Damaged, fmt.Errorf("%s: %d bytes from offset %d on are no sound records", keptName, rest, end))
	}
	slots, err := readIfThere(filepath.Join(dir, newestName))
	if err != nil {
		return r, err
	}
	last := r.Newest
	for i := range int64(2) {
		if h, ok := inSlot(slots, i); ok && newer(h, last) {
			take(h)
		}
	}
	return r, nil
}

func readIfThere(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
