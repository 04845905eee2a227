package peer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// salvaged is what salvage made of a damaged environment.
type salvaged struct {
	Pieces    int   // of the snapshot
	Equal     int   // good ones: laid out from the environment, asked for, or there before
	Asked     int   // that were fetched: what was lost decides how what follows is laid out
	Different int   // that are left to be fetched
	Fetched   int64 // bytes of what was asked for
	Lost      int   // ranges of keys that could not be read
	Damaged   int64 // bytes of pages that were no good, or of one page in each piece that differs
}

// salvage lays out what a damaged environment still holds in the .part of a published
// snapshot: what network.Fetch of the same offer fetches then is what differs. env is
// the environment's file or directory, to which nobody writes; it is read, neither
// mapped nor changed. at is where it stands, if it can not say so itself. It may be
// before or after the snapshot: the log, if there is one, says what changed between.
//
// It is safe to kill, and to call again. After an error too the .part holds what it
// held or more, so that Fetch gets the rest: nothing is lost but time.
func (n *network) salvage(ctx context.Context, env string, at txlog.Pos, o replica.Offer, log *txlog.Log) (s salvaged, err error) {
	over, err := n.begin(ctx, o.InfoHash)
	if err != nil {
		return s, err
	}
	defer over()
	if _, whole := n.shelf.find(o.InfoHash); whole {
		return s, nil // nothing is to be fetched
	}
	d, err := n.describe(ctx, o)
	if err != nil {
		return s, err
	}
	s.Pieces = d.torrent.Pieces()
	part, err := n.shelf.repo.OpenPartial(d.manifest, d.torrent, func(ctx context.Context, piece int, buf []byte) error {
		return n.askPiece(ctx, o, d, piece, buf)
	})
	if err != nil {
		return s, err
	}
	layer := part.Layer()
	began := time.Now()
	got, err := lmdbstore.Salvage(ctx, lmdbstore.Salvaging{
		File: env, At: at, Want: d.manifest.Expected().SnapshotInfo, Log: log, Published: part.Reader(ctx),
	}, layer)
	layer.End()
	s.Equal, s.Different, s.Asked, s.Lost = layer.Equal, len(layer.Different), part.Asked, got.Lost
	s.Fetched = int64(part.Asked) * d.manifest.PieceLength
	if s.Damaged = got.Unread; s.Damaged == 0 && err == nil {
		s.Damaged = int64(s.Different) * lmdbstore.PageSize
	}
	if err = errors.Join(err, part.Close()); err != nil {
		return s, err
	}
	n.shelf.logger.Info("laid out what a damaged environment still holds of a snapshot", "env", env, "pos", o.Pos, "infohash", o.InfoHash,
		"pieces", s.Pieces, "equal", s.Equal, "asked", s.Asked, "different", s.Different, "lost_ranges", s.Lost,
		"changed_keys", got.Changed, "took", time.Since(began))
	return s, nil
}

const (
	// askRounds is how often all holders are asked for one piece, askPause how long
	// to wait between.
	askRounds = 5
	askPause  = 500 * time.Millisecond
)

// askPiece gets one piece of a snapshot from whoever has it.
func (n *network) askPiece(ctx context.Context, o replica.Offer, d described, piece int, buf []byte) error {
	errs := []error{fmt.Errorf("nobody gave piece %d of snapshot %s", piece, o.Pos)}
	for range askRounds {
		errs = errs[:1]
		for _, h := range asked(o.Holders) {
			err := n.client.Piece(ctx, p2p.Target{Name: h.Name, Addr: h.Addr}, o.InfoHash, piece, buf)
			if err == nil && !d.torrent.VerifyPiece(piece, buf) {
				err = errors.New("it is not the snapshot's")
			}
			if err == nil {
				return nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", h, err))
		}
		if !pause(ctx, askPause) {
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}
