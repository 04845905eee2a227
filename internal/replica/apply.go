package replica

import (
	"context"
	"fmt"
	"slices"

	"github.com/qs-peer/qs-peer/txlog"
)

// batchEntries bounds one transaction of the store: it bounds how long a commit
// takes and how far behind reads are meanwhile.
const batchEntries = 10_000

// logError is an error of reading the own log.
type logError struct{ error }

func (e logError) Unwrap() error { return e.error }

// apply feeds a target from the own log. applied is called with the target's
// position at first and after each transaction.
func (r *Replica) apply(ctx context.Context, t Target, applied func(txlog.Pos)) error {
	_, pos := t.Position()
	var entries Entries
	err := r.persist(ctx, applying, shortage, func() (err error) {
		entries, err = r.c.Log.Read(pos)
		return err
	})
	if err != nil {
		return logError{fmt.Errorf("read the log after entry %d: %w", pos.Seq, err)}
	}
	defer entries.Close()
	applied(pos)
	for {
		var batch []txlog.Entry
		err := r.persist(ctx, applying, shortage, func() (err error) {
			batch, err = entries.Next(ctx, batchBytes)
			return err
		})
		if err != nil {
			return logError{fmt.Errorf("read the log after entry %d: %w", pos.Seq, err)}
		}
		for part := range slices.Chunk(batch, batchEntries) {
			rest := part
			err := r.persist(ctx, applying, obstacle, func() error {
				err := t.Apply(rest)
				_, pos := t.Position() // a prefix may be in
				rest = after(rest, pos)
				return err
			})
			if err != nil {
				return fmt.Errorf("apply entries %d to %d: %w", part[0].Seq, part[len(part)-1].Seq, err)
			}
			pos = part[len(part)-1].Pos()
			r.metrics.applied.Add(float64(len(part)))
			r.metrics.batches.Inc()
			applied(pos)
		}
	}
}

// after returns what of entries, which follow each other, is after pos.
func after(entries []txlog.Entry, pos txlog.Pos) []txlog.Entry {
	if len(entries) == 0 || pos.Seq < entries[0].Seq {
		return entries
	}
	return entries[min(pos.Seq-entries[0].Seq+1, uint64(len(entries))):]
}
