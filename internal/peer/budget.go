package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// alarmAt is the part of the disk budget from which on there is an alarm.
	alarmAt = 0.8
	// measureEvery is how often the data directory is measured.
	measureEvery = 2 * time.Second
)

// diskBudget is how much of the disk the data directory takes, and may.
type diskBudget struct {
	dir    string
	limit  int64 // bytes; 0: no limit
	logger *slog.Logger
	freed  *prometheus.CounterVec

	used     atomic.Int64
	measured time.Time // keeper.mu guards these
	alarmed  bool
	helpless bool
}

func newDiskBudget(dir string, limit int64, logger *slog.Logger, reg prometheus.Registerer) *diskBudget {
	b := &diskBudget{dir: dir, limit: limit, logger: logger}
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "qs_disk_used_bytes", Help: "What the data directory takes of the disk, as last measured."},
		func() float64 { return float64(b.used.Load()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "qs_disk_budget_used_ratio", Help: "What the data directory takes of its disk budget; 0 without one. Beyond 0.8 is an alarm, beyond 1 evidence of damage, old snapshots and log entries go."},
		b.ratio)
	b.freed = f.NewCounterVec(prometheus.CounterOpts{
		Name: "qs_disk_budget_freed_total", Help: "Times something went because the disk budget was used up, by what: evidence, snapshot, log."}, []string{"what"})
	return b
}

// ratio returns how much of the budget is used.
func (b *diskBudget) ratio() float64 {
	if b.limit == 0 {
		return 0
	}
	return float64(b.used.Load()) / float64(b.limit)
}

// segmentBytes returns how large the log's segments may be, 0 for the default: the log
// goes by whole segments, so a small budget takes small ones.
func segmentBytes(budget int64) int64 {
	const least, most = 256 << 10, 64 << 20
	if budget == 0 {
		return 0
	}
	return min(max(budget/16, least), most)
}

// measure looks what the data directory takes.
func (b *diskBudget) measure() error {
	var used int64
	err := filepath.WalkDir(b.dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				if stat, ok := info.Sys().(*syscall.Stat_t); ok {
					used += stat.Blocks * 512 // files of LMDB are longer than what they take
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("measure %s: %w", b.dir, err)
	}
	b.used.Store(used)
	b.measured = time.Now()
	b.alarm()
	return nil
}

// alarm logs when the budget is nearly used up, and when it is not any more.
func (b *diskBudget) alarm() {
	switch r := b.ratio(); {
	case r >= alarmAt && !b.alarmed:
		b.alarmed = true
		b.logger.Warn("the disk budget is nearly used up: beyond it evidence of damage, the oldest snapshots and log entries go", "used", b.used.Load(), "budget", b.limit)
	case r < alarmAt && b.alarmed:
		b.alarmed = false
		b.logger.Info("the disk budget is not nearly used up any more", "used", b.used.Load(), "budget", b.limit)
	}
}

// due reports whether it is time to measure.
func (b *diskBudget) due() bool { return time.Since(b.measured) >= measureEvery }

// over reports whether more is used than the budget allows.
func (b *diskBudget) over() bool { return b.limit > 0 && b.used.Load() > b.limit }

// keep measures the directory, if it is time to, and while it takes more than the
// budget frees what there is, one after the other, as free says then. Each tells what
// went, "" for nothing.
func (b *diskBudget) keep(free func() []func() (what string, err error)) error {
	if !b.due() {
		return nil
	}
	if err := b.measure(); err != nil {
		return err
	}
	var all []func() (string, error)
	if b.over() {
		all = free()
	}
	for _, f := range all {
		if !b.over() {
			break
		}
		what, err := f()
		if err != nil {
			return err
		}
		if what != "" {
			b.freed.WithLabelValues(what).Inc()
			if err := b.measure(); err != nil {
				return err
			}
		}
	}
	if over := b.over(); over != b.helpless {
		b.helpless = over
		if over {
			b.logger.Error("the disk budget is used up, and nothing more may go: the newest snapshot, what follows it, and the store stay; give more, or make the data smaller",
				"used", b.used.Load(), "budget", b.limit)
		}
	}
	return nil
}
