package peer

import (
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/compare"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// FleetStatus is the fleet as one node's gossip sees it: GET /v1/status.
type FleetStatus struct {
	Self    string         `json:"self"`
	Members []MemberStatus `json:"members"` // this node first, then by name
}

// MemberStatus is one node in a FleetStatus.
type MemberStatus struct {
	Name string      `json:"name"`
	Role gossip.Role `json:"role"`
	Colo string      `json:"colo"`
	// State is the replica's, or "left" or "failed".
	State       string `json:"state"`
	Writer      bool   `json:"writer"`
	Dataset     string `json:"dataset"`
	AppliedSeq  uint64 `json:"applied_seq"`
	AppliedHash string `json:"applied_hash"` // empty at seq 0
	// AppliedDigest is of all pairs there; empty if the member says nothing of it.
	AppliedDigest string `json:"applied_digest"`
	// PartsAt is the first entry after which the member's copy is known to differ from
	// the one of the node that was asked; 0: it is not known to.
	PartsAt uint64 `json:"parts_at,omitempty"`
	// HeadSeq is the furthest entry that this node knows of in the member's dataset.
	HeadSeq    uint64 `json:"head_seq"`
	LagEntries uint64 `json:"lag_entries"`
	// LagSeconds is by the writer's clock alone: the time between the last
	// entry that the member applied and the furthest one. 0 without lag.
	LagSeconds       float64 `json:"lag_seconds"`
	LogFirst         uint64  `json:"log_first"`
	SnapshotSeq      uint64  `json:"snapshot_seq"` // the newest one that the member seeds; 0: none
	SnapshotInfohash string  `json:"snapshot_infohash"`
	Progress         float64 `json:"progress"` // of a bootstrap, 0 to 1
	// Fetching is the infohash of the snapshot that the member fetches now, empty
	// when it fetches none, and then the other figures are 0 and null.
	Fetching    string   `json:"fetching"`
	FetchDone   int64    `json:"fetch_done"`   // bytes verified
	FetchTotal  int64    `json:"fetch_total"`  // bytes
	Rate        int64    `json:"rate"`         // bytes per second, over the last 5 s
	SecondsLeft *float64 `json:"seconds_left"` // an estimate; null without a rate
	// Snapshot payload received since the member started, by who sent it; from
	// workers is what came from the own colo and from others.
	BytesFromManagers    int64  `json:"bytes_from_managers"`
	BytesFromWorkers     int64  `json:"bytes_from_workers"`
	BytesFromOwnColo     int64  `json:"bytes_from_own_colo"`
	BytesFromOtherColos  int64  `json:"bytes_from_other_colos"`
	PiecesFromManagers   uint32 `json:"pieces_from_managers"`
	PiecesFromOwnColo    uint32 `json:"pieces_from_own_colo"`
	PiecesFromOtherColos uint32 `json:"pieces_from_other_colos"`
	Version              string `json:"version"`
	GossipAddr           string `json:"gossip_addr"`
	HTTPAddr             string `json:"http_addr"`
	// Upstream and Error are known of this node only.
	Upstream string `json:"upstream,omitempty"`
	Error    string `json:"error,omitempty"`
	// SignedAt is when the writer, by its own clock, signed the furthest head of the
	// log that this node verified.
	SignedAt *time.Time `json:"signed_at,omitempty"`
	// DiskUsed is what the data directory takes, and DiskBudget what it may, in bytes:
	// known of this node only, and only if it has a budget.
	DiskUsed   int64 `json:"disk_used,omitempty"`
	DiskBudget int64 `json:"disk_budget,omitempty"`
	// PublishStopped is why a manager publishes no snapshots: known of this node only.
	PublishStopped string `json:"publish_stopped,omitempty"`
}

// comparison is what is known of how this node's copy compares with others.
type comparison interface {
	Partings() []compare.Parting
	Stopped() error
}

// statusOf makes the report out of what gossip knows, own being what this
// node's replica knows better.
func statusOf(members []gossip.Member, own replica.Status, c comparison) FleetStatus {
	parts := map[string]uint64{}
	for _, p := range c.Partings() {
		parts[p.Who] = max(parts[p.Who], p.Entry)
	}
	heads := map[txlog.DatasetID]head{}
	for i, m := range members {
		h := heads[m.Dataset]
		h.take(m.Head, m.HeadTime)
		h.take(m.Applied, m.AppliedTime)
		if i == 0 {
			h.take(own.Head, own.HeadTime)
		}
		heads[m.Dataset] = h
	}
	if len(heads) == 2 {
		// A node that holds nothing yet lags behind the one dataset there is.
		none := heads[txlog.DatasetID{}]
		for id, h := range heads {
			if !id.IsZero() && none.pos.Seq < h.pos.Seq {
				heads[txlog.DatasetID{}] = h
			}
		}
	}
	s := FleetStatus{Self: members[0].Name, Members: make([]MemberStatus, 0, len(members))}
	for i, m := range members {
		ms := memberStatus(m, heads[m.Dataset])
		if i == 0 {
			ms.State, ms.Upstream, ms.Error = string(own.State), own.Upstream, own.Err
			if err := c.Stopped(); err != nil {
				ms.PublishStopped = err.Error()
			}
			if !own.Signed.IsZero() {
				ms.SignedAt = &own.Signed
			}
		}
		ms.PartsAt = parts[m.Name]
		s.Members = append(s.Members, ms)
	}
	return s
}

// head is the furthest position seen in a dataset.
type head struct {
	pos  txlog.Pos
	time time.Time
}

func (h *head) take(pos txlog.Pos, at time.Time) {
	if pos.Seq > h.pos.Seq || (pos == h.pos && h.time.IsZero()) {
		h.pos, h.time = pos, at
	}
}

func memberStatus(m gossip.Member, h head) MemberStatus {
	s := MemberStatus{
		Name: m.Name, Role: m.Role, Colo: m.Colo, State: m.State, Writer: m.Writer,
		AppliedSeq: m.Applied.Seq,
		HeadSeq:    h.pos.Seq, LogFirst: m.LogFirst,
		Progress:          m.Progress,
		BytesFromManagers: m.FromManagers.Bytes, PiecesFromManagers: m.FromManagers.Pieces,
		BytesFromWorkers: m.FromOwnColo.Bytes + m.FromOtherColos.Bytes,
		BytesFromOwnColo: m.FromOwnColo.Bytes, PiecesFromOwnColo: m.FromOwnColo.Pieces,
		BytesFromOtherColos: m.FromOtherColos.Bytes, PiecesFromOtherColos: m.FromOtherColos.Pieces,
		Version: m.Version, GossipAddr: m.Addr, HTTPAddr: m.HTTPAddr,
	}
	switch m.Liveness {
	case gossip.Failed:
		s.State = "failed"
	case gossip.Left:
		s.State = "left"
	}
	if m.Fetching != (chunker.InfoHash{}) && m.Liveness == gossip.Alive {
		s.Fetching = chunker.InfoHash(m.Fetching).String()
		s.FetchDone, s.FetchTotal, s.Rate = m.FetchDone, m.FetchTotal, m.FetchRate
		s.SecondsLeft = secondsLeft(p2p.Progress{Done: m.FetchDone, Total: m.FetchTotal, Rate: m.FetchRate})
	}
	if !m.Dataset.IsZero() {
		s.Dataset = m.Dataset.String()
	}
	if m.Applied.Seq > 0 {
		s.AppliedHash = m.Applied.Hash.String()
	}
	if m.AppliedDigest != [32]byte{} {
		s.AppliedDigest = lmdbstore.Digest(m.AppliedDigest).String()
	}
	if h.pos.Seq > m.Applied.Seq {
		s.LagEntries = h.pos.Seq - m.Applied.Seq
		if !h.time.IsZero() && !m.AppliedTime.IsZero() {
			s.LagSeconds = max(0, h.time.Sub(m.AppliedTime).Seconds())
		}
	}
	var newest gossip.Announcement
	for _, a := range m.Snapshots {
		if a.Pos.Seq > newest.Pos.Seq {
			newest = a
		}
	}
	if newest.Pos.Seq > 0 {
		s.SnapshotSeq, s.SnapshotInfohash = newest.Pos.Seq, chunker.InfoHash(newest.InfoHash).String()
	}
	return s
}
