package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
)

// maxAsked is how many holders are asked what a snapshot is, at each try.
const maxAsked = 16

// described is what holders say of a snapshot, as far as it is to be believed.
type described struct {
	note     []byte // with the signatures of all who were asked, those that count
	manifest *snapshot.Manifest
	torrent  *chunker.Torrent
}

// describe asks the holders, one after the other, what the snapshot is, until as
// many managers as required stand behind one answer.
func (n *network) describe(ctx context.Context, o replica.Offer) (described, error) {
	d, err := n.manifest(ctx, o, nil)
	if err != nil {
		return described{}, err
	}
	errs := []error{fmt.Errorf("no holder gave the metainfo of snapshot %s", o.Pos)}
	for _, h := range asked(o.Holders) {
		if d.torrent, err = n.torrentFrom(ctx, h, d.manifest); err == nil {
			return d, nil
		}
		n.sigs.refused(o.InfoHash.String(), h.String(), err)
		errs = append(errs, fmt.Errorf("%s: %w", h, err))
		if ctx.Err() != nil {
			break
		}
	}
	return described{}, errors.Join(errs...)
}

// manifest asks the holders until as many managers as required signed one
// manifest; have, if not nil, is what is known of it already. The error wraps
// replica.ErrTooEarly if some signed it, but not as many: then the note has those.
func (n *network) manifest(ctx context.Context, o replica.Offer, have []byte) (described, error) {
	errs := []error{fmt.Errorf("no holder could describe snapshot %s", o.Pos)}
	notes := map[string][]byte{} // by what they say
	var best described
	consider := func(m *snapshot.Manifest, note []byte) (err error) {
		text := string(m.Encode())
		if note, err = n.sigs.combine(notes[text], note); err != nil {
			return err
		}
		notes[text] = note
		if len(n.sigs.by(note)) >= len(n.sigs.by(best.note)) {
			best = described{note: note, manifest: m}
		}
		_, err = n.sigs.open(note, n.sigs.need)
		return err
	}
	if m, err := n.sigs.open(have, 1); err == nil {
		if consider(m, have) == nil {
			return best, nil
		}
	}
	for _, h := range asked(o.Holders) {
		m, note, err := n.noteFrom(ctx, h, o)
		if err == nil {
			if err = consider(m, note); err == nil {
				return best, nil
			}
		}
		if ctx.Err() != nil {
			return described{}, ctx.Err()
		}
		n.sigs.refused(o.InfoHash.String(), h.String(), err)
		errs = append(errs, fmt.Errorf("%s: %w", h, err))
	}
	if best.note != nil {
		errs[0] = fmt.Errorf("%w: snapshot %s", replica.ErrTooEarly, o.Pos)
	}
	return best, errors.Join(errs...)
}

// asked returns whom to ask: the managers first, then others, not always the same.
func asked(holders []replica.Holder) []replica.Holder {
	holders = slices.Clone(holders)
	first := slices.IndexFunc(holders, func(h replica.Holder) bool { return !h.Manager })
	if first >= 0 {
		workers := holders[first:]
		rand.Shuffle(len(workers), func(i, j int) { workers[i], workers[j] = workers[j], workers[i] })
	}
	return holders[:min(len(holders), maxAsked)]
}

// noteFrom gets one holder's note, and the manifest in it if that is of what was
// announced and at least one manager signed it.
func (n *network) noteFrom(ctx context.Context, h replica.Holder, o replica.Offer) (*snapshot.Manifest, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	note, err := n.client.Manifest(ctx, p2p.Target{Name: h.Name, Addr: h.Addr}, o.InfoHash)
	if err != nil {
		return nil, nil, err
	}
	m, err := n.sigs.open(note, 1)
	if err == nil {
		err = announced(o, m)
	}
	return m, note, err
}

// announced compares what the manifest and gossip say of one snapshot.
func announced(o replica.Offer, m *snapshot.Manifest) error {
	said := snapshot.Manifest{Dataset: o.Dataset, Pos: o.Pos, InfoHash: o.InfoHash, Size: o.Size}
	signed := snapshot.Manifest{Dataset: m.Dataset, Pos: m.Pos, InfoHash: m.InfoHash, Size: m.Size}
	switch {
	case said != signed:
		return &manifestError{"not_as_announced", fmt.Errorf(
			"the manifest is of dataset %s at %s, infohash %s, %d bytes; announced was dataset %s at %s, infohash %s, %d bytes",
			m.Dataset, m.Pos, m.InfoHash, m.Size, o.Dataset, o.Pos, o.InfoHash, o.Size)}
	case m.Format < lmdbstore.OldestFormat || m.Format > lmdbstore.Format:
		return &manifestError{"unknown_format", fmt.Errorf("the snapshot has format %d, and this program knows %d to %d",
			m.Format, lmdbstore.OldestFormat, lmdbstore.Format)}
	}
	return nil
}

// torrentFrom gets one holder's metainfo, if it is of the manifest's file.
func (n *network) torrentFrom(ctx context.Context, h replica.Holder, m *snapshot.Manifest) (*chunker.Torrent, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	t, err := n.client.Torrent(ctx, p2p.Target{Name: h.Name, Addr: h.Addr}, m.InfoHash)
	if err != nil {
		return nil, err
	}
	if err := m.Matches(t); err != nil {
		return nil, &manifestError{"other_torrent", err}
	}
	return t, nil
}

// refute remembers that what trusted keys signed is false: the snapshot is neither
// fetched nor opened any more. It returns err.
func (n *network) refute(s *snapshot.Snapshot, err error) error {
	err = &manifestError{"false_manifest", err}
	n.sigs.refused(s.Manifest.InfoHash.String(), "its signers", err)
	n.refuted.add(s.Manifest.InfoHash, err)
	return err
}

// sameManifest reports whether s is what d describes.
func (d *described) sameManifest(s *snapshot.Snapshot) bool {
	return bytes.Equal(s.Manifest.Encode(), d.manifest.Encode())
}
