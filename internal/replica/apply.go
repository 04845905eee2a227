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
	entries, err := r.c.Log.Read(pos)
	if err != nil {
		return logError{fmt.Errorf("read the log after entry %d: %w", pos.Seq, err)}
	}
	defer entries.Close()
	applied(pos)
	for {
		batch, err := entries.Next(ctx, batchBytes)
		if err != nil {
			return logError{fmt.Errorf("read the log after entry %d: %w", pos.Seq, err)}
		}
		for part := range slices.Chunk(batch, batchEntries) {
			if err := r.whenRoom(ctx, applying, func() error { return t.Apply(part) }); err != nil {
				return fmt.Errorf("apply entries %d to %d: %w", part[0].Seq, part[len(part)-1].Seq, err)
			}
			pos = part[len(part)-1].Pos()
			r.metrics.applied.Add(float64(len(part)))
			r.metrics.batches.Inc()
			applied(pos)
		}
	}
}
