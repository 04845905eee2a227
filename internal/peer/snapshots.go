package peer

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/snapshot"
)

// SnapshotInfo is a snapshot as HTTP tells of it.
type SnapshotInfo struct {
	Seq      uint64    `json:"seq"`
	Hash     string    `json:"hash"`
	InfoHash string    `json:"infohash"`
	SHA256   string    `json:"sha256"`
	Size     int64     `json:"size"` // bytes
	Pairs    uint64    `json:"pairs"`
	Time     time.Time `json:"time"` // the writer's clock at Seq
}

func infoOf(s *snapshot.Snapshot) SnapshotInfo {
	m := &s.Manifest
	return SnapshotInfo{
		Seq: m.Pos.Seq, Hash: m.Pos.Hash.String(), InfoHash: m.InfoHash.String(),
		SHA256: hex.EncodeToString(m.SHA256[:]), Size: m.Size, Pairs: m.Pairs, Time: m.Time,
	}
}

func (a *api) getSnapshots(w *response, _ *http.Request) {
	list := struct {
		Snapshots []SnapshotInfo `json:"snapshots"`
	}{[]SnapshotInfo{}}
	for _, s := range a.shelf.list() {
		list.Snapshots = append(list.Snapshots, infoOf(s))
	}
	writeJSONBody(w, http.StatusOK, list)
}

func (a *api) postSnapshot(w *response, r *http.Request) {
	s, err := a.publisher.publish(r.Context())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSONBody(w, http.StatusOK, infoOf(s))
}

func (a *api) getTorrent(w *response, r *http.Request) {
	if s, ok := a.pathSnapshot(w, r); ok {
		w.Header().Set("Content-Type", "application/x-bittorrent")
		w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", s.Torrent.Name()+".torrent"))
		_, _ = w.Write(s.Torrent.Metainfo())
	}
}

func (a *api) getManifest(w *response, r *http.Request) {
	if s, ok := a.pathSnapshot(w, r); ok {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(s.Note)
	}
}

// pathSnapshot finds the snapshot that the path names, or answers.
func (a *api) pathSnapshot(w *response, r *http.Request) (*snapshot.Snapshot, bool) {
	h, err := chunker.ParseInfoHash(r.PathValue("infohash"))
	if err != nil {
		a.fail(w, r, badRequest("%v", err))
		return nil, false
	}
	s, ok := a.shelf.get(h)
	if !ok {
		writeError(w, http.StatusNotFound, fmt.Errorf("this node does not offer snapshot %s: see /v1/snapshots for what it does", h))
	}
	return s, ok
}
