package peer

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// evidence is what was kept of something damaged, for a person to look at.
type evidence struct {
	path string
	at   time.Time
}

// evidence returns what there is that nothing needs any more, the oldest first. What a
// repair that is not over may read is not among it; nor are closed cases, which are small,
// and forks, which have to be decided first.
func (s *storage) evidence() (kept []evidence) {
	patterns := []string{filepath.Join(snapshotsDir, "*.damaged"), asidePrefix + "*"}
	if s.infirmary.reason() == nil {
		patterns = append(patterns, filepath.Join(storeDir, "*.damaged"))
	}
	if len(s.log.Holes()) == 0 {
		patterns = append(patterns, filepath.Join(logDir, "*.damaged"))
	}
	for _, p := range patterns {
		paths, _ := filepath.Glob(filepath.Join(s.dir, p)) // the pattern is sound
		for _, path := range paths {
			if info, err := os.Lstat(path); err == nil {
				kept = append(kept, evidence{path, info.ModTime()})
			}
		}
	}
	slices.SortFunc(kept, func(a, b evidence) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.path, b.path)) })
	return kept
}

// forget returns how to let go of one piece of evidence after the other, the oldest
// first.
func (k *keeper) forget() (free []func() (string, error)) {
	for _, e := range k.storage.evidence() {
		free = append(free, func() (string, error) {
			k.logger.Warn("evidence of damage goes because the disk budget is used up", "path", e.path, "from", e.at)
			return "evidence", durable.RemoveAll(durable.OS, e.path)
		})
	}
	return free
}
