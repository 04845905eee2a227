package torture

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stage is what a node is in the middle of.
type Stage string

// The stages at which nodes are killed.
const (
	Serving   Stage = "serve"    // reads, and follows
	Importing Stage = "import"   // a large transaction is on its way to the log
	Minting   Stage = "publish"  // a snapshot is being minted
	Starting  Stage = "start"    // the process has begun, and does not listen yet
	Fetching  Stage = "fetch"    // a snapshot's pieces arrive
	Opening   Stage = "open"     // a fetched snapshot becomes a generation
	Switching Stage = "switch"   // CURRENT has just been set to it
	CatchUp   Stage = "catch-up" // the log's entries after it are applied
	Repairing Stage = "repair"   // what was damaged is being replaced
)

// footprint is what a node's data directory tells of what the node is at, or was when it
// was killed.
type footprint struct {
	minting, fetching, quarantined bool
	current                        uint64 // the generation that CURRENT names; 0: none
	switching                      bool   // CURRENT is about to be replaced
	older, newer                   bool   // there are generations besides the current one
}

// footprintOf looks at a data directory. What is not there, or goes meanwhile, is not there.
func footprintOf(data string) (f footprint) {
	for _, e := range list(filepath.Join(data, "snapshots")) {
		f.minting = f.minting || strings.HasSuffix(e, ".mint")
		f.fetching = f.fetching || strings.HasSuffix(e, ".part")
	}
	store := filepath.Join(data, "store")
	if text, err := os.ReadFile(filepath.Join(store, "CURRENT")); err == nil {
		f.current = generation(strings.TrimSpace(string(text)))
	}
	for _, e := range list(store) {
		f.switching = f.switching || e == "CURRENT.tmp"
		if n := generation(e); n > 0 {
			f.older, f.newer = f.older || n < f.current, f.newer || n > f.current
		}
	}
	if _, err := os.Stat(filepath.Join(data, "quarantine.json")); err == nil {
		f.quarantined = true
	}
	return f
}

func list(dir string) (names []string) {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ = d.Readdirnames(-1)
	return names
}

// generation returns the number in a generation's name, 0 for another name.
func generation(name string) uint64 {
	digits, ok := strings.CutPrefix(name, "gen-")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil {
		return 0
	}
	return n
}

// shows reports whether a stage has left a mark. before is the footprint when the wait
// for it began.
func (f footprint) shows(s Stage, before footprint) bool {
	switch s {
	case Minting:
		return f.minting
	case Fetching:
		return f.fetching
	case Opening:
		return f.newer && !f.fetching
	case Switching:
		return f.switching || f.current > before.current && before.current > 0 || f.older
	case Repairing:
		return f.quarantined
	}
	return false
}
