package peer

import (
	"context"
	"errors"

	"github.com/qs-peer/qs-peer/internal/replica"
)

// What a replica that has to mend its copy asks of the node.

// Held implements replica.Network: what is on the shelf was read whole and verified.
func (n *network) Held(ctx context.Context) ([]replica.Held, error) {
	if err := n.shelf.wait(ctx); err != nil {
		return nil, err
	}
	var held []replica.Held
	for _, s := range n.shelf.list() {
		m := &s.Manifest
		if !n.sigs.enough(s.Note) || n.refuted.why(m.InfoHash) != nil {
			continue
		}
		held = append(held, replica.Held{Dataset: m.Dataset, Pos: m.Pos, InfoHash: m.InfoHash, Size: m.Size, File: s.Path})
	}
	return held, nil
}

// Salvage implements replica.Network.
func (n *network) Salvage(ctx context.Context, o replica.Offer) error {
	r, ok := n.infirmary.remains()
	if !ok {
		return errors.New("the damaged environment was not kept")
	}
	log := n.log
	if r.diverged {
		log = nil
	}
	s, err := n.salvage(ctx, r.env, r.at, o, log)
	n.infirmary.asked(s.Fetched)
	n.infirmary.learn(s.Damaged)
	if err == nil && s.Equal == 0 {
		err = errors.New("no piece of the snapshot is like what the store holds")
	}
	return err
}
