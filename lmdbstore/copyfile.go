package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied between looks at the context.
const copyChunk = 8 << 20

// copyFile makes target a copy of source, which is on stable storage, likewise.
// Where the file system can share the blocks it does. Where it can not, the copy
// takes the source's place in memory.
func copyFile(ctx context.Context, target, source string, progress func(done int64)) error {
	src, err := os.Open(source)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := copyContent(ctx, dst, src, info.Size(), progress); err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", source, err), dst.Close())
	}
	return errors.Join(dst.Sync(), dst.Close())
}

func copyContent(ctx context.Context, dst, src *os.File, size int64, progress func(int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		progress(size)
		return ctx.Err()
	}
	for done := int64(0); done < size; progress(done) {
		if err := ctx.Err(); err != nil {
			return err
		}
		// os.File copies by copy_file_range where the kernel can.
		n, err := io.CopyN(dst, src, min(copyChunk, size-done))
		// One of the two is enough in the page cache: the copy, which is about to
		// be mapped. It gets the memory of the source, part by part, which is also
		// much cheaper than memory that the kernel has to find or, in a virtual
		// machine, the host. Whoever wants the source again reads it from the disk.
		unix.Fadvise(int(src.Fd()), done, n, unix.FADV_DONTNEED)
		done += n
		if err != nil {
			return fmt.Errorf("at byte %d of %d: %w", done, size, err)
		}
	}
	return nil
}
