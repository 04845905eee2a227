package peer

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestListenUnixIsNeverWider watches the socket's file while it is made, under any umask.
func TestListenUnixIsNeverWider(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666} {
		for _, umask := range []int{0, 0o022, 0o077} {
			syscall.Umask(umask)
			for range 50 {
				path := filepath.Join(t.TempDir(), "s")
				var stop atomic.Bool
				var watching sync.WaitGroup
				watching.Go(func() {
					for !stop.Load() {
						if info, err := os.Stat(path); err == nil && info.Mode().Perm()&^mode != 0 {
							t.Errorf("mode %#o, umask %#o: seen with %#o", mode, umask, info.Mode().Perm())
							return
						}
					}
				})
				ln, err := listenUnix(path, mode)
				stop.Store(true)
				watching.Wait()
				if err != nil {
					t.Fatal(err)
				}
				wantMode(t, path, mode)
				ln.Close()
			}
		}
	}
}
