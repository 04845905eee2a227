package torture

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// part is a kind of file that a node keeps, and that is damaged.
type part string

const (
	logFile      part = "log"
	sealedFile   part = "sealed segment" // of the log
	storeFile    part = "store"
	storeCurrent part = "CURRENT"
	cleanFile    part = "CLEAN" // says that the store was closed in order
	snapshotFile part = "snapshot"
	partialFile  part = "partial snapshot" // of a fetch under way
	torrentFile  part = "torrent"
	manifestFile part = "manifest" // a signed note
	headsFile    part = "heads"
	nodeFile     part = "node.json"
	scrubFile    part = "scrub.json"
	openCase     part = "quarantine.json" // of a repair under way
	closedCase   part = "evidence"
	otherFile    part = "other"
)

// fileKind is a kind of file in a data directory.
type fileKind struct {
	pattern string // of its path there, as of path.Match; a last element "..." is all that is below
	part    part   // as which it is damaged; empty: it is not
	why     string // it is not
}

const (
	halfMade = "replaces another file as soon as it is whole; a crash leaves it, and who starts removes it: the campaigns kill and power"
	kept     = "is kept for people; no node reads it"
)

// fileKinds are all kinds of files that nodes keep. What a node has besides is
// reported, so that no kind is forgotten.
var fileKinds = []fileKind{
	{"log/*.log", logFile, ""},
	{"log/*.log.fill", "", "what is fetched to fill a hole, and verified when it is whole: txlog's own tests"},
	{"log/*.damaged", "", kept},
	{"log/*.tmp", "", halfMade},
	{"log/*.new", "", halfMade},
	{"store/CURRENT", storeCurrent, ""},
	{"store/CURRENT.tmp", "", halfMade},
	{"store/gen-*/data.mdb", storeFile, ""}, // of the generation that CURRENT names
	{"store/gen-*/lock.mdb", otherFile, ""},
	{"store/gen-*/CLEAN", cleanFile, ""},
	{"store/gen-*/CLEAN.tmp", "", halfMade},
	{"store/gen-*.tmp/...", "", halfMade},
	{"store/gen-*.damaged/...", "", kept},
	{"store/*.damaged", "", kept},
	{"snapshots/snapshot-*.mdb", snapshotFile, ""},
	{"snapshots/snapshot-*.torrent", torrentFile, ""},
	{"snapshots/snapshot-*.manifest", manifestFile, ""},
	{"snapshots/snapshot-*.part", partialFile, ""},
	{"snapshots/snapshot-*.mint", "", halfMade},
	{"snapshots/snapshot-*.tmp", "", halfMade},
	{"snapshots/snapshot-*.damaged", "", kept},
	{"heads/kept", headsFile, ""},
	{"heads/newest", headsFile, ""},
	{"heads/*.tmp", "", halfMade},
	{"node.json", nodeFile, ""},
	{"node.json.copy", nodeFile, ""},
	{"scrub.json", scrubFile, ""},
	{"quarantine.json", openCase, ""},
	{"evidence/*.json", closedCase, ""},
	{"evidence/*.tmp", "", halfMade},
	{"addrs.json", otherFile, ""},
	{"LOCK", otherFile, ""},
	{"crash.txt", otherFile, ""},
	{"last-crash.txt", "", kept},
	{"*.tmp", "", halfMade},
	{"replay/...", "", "a store while a log is replayed, removed at the next start"},
	{"restoring/...", "", "what a restore gathers, all of it verified as by any follower"},
	{"damaged-*/...", "", "what was there before a restore; " + kept},
}

// files returns the files of a kind in a data directory, in an order that is always the
// same.
func (p part) files(data string) []string {
	var all []string
	for _, k := range fileKinds {
		if k.part == p || p == sealedFile && k.part == logFile {
			found, _ := filepath.Glob(filepath.Join(data, filepath.FromSlash(k.pattern))) // only a bad pattern is an error
			all = append(all, found...)
		}
	}
	slices.Sort(all)
	switch p {
	case sealedFile: // all but the one that is appended to
		return all[:max(0, len(all)-1)]
	case storeFile:
		current, _ := os.ReadFile(filepath.Join(data, "store", "CURRENT")) // if it can not be read nothing is current
		return slices.DeleteFunc(all, func(file string) bool {
			return filepath.Base(filepath.Dir(file)) != strings.TrimSpace(string(current))
		})
	}
	return all
}

// is reports whether a file, by its path in a data directory, is of the kind.
func (k *fileKind) is(name string) bool {
	pattern, below := strings.CutSuffix(k.pattern, "/...")
	if below {
		elements := strings.Split(name, "/")
		depth := strings.Count(pattern, "/") + 1
		name = strings.Join(elements[:min(depth, len(elements))], "/")
	}
	matches, _ := path.Match(pattern, name)
	return matches
}

// strangeFiles returns what kinds of files there are in a data directory that the
// campaigns know nothing of, each by an example with its digits blurred. What goes
// meanwhile is not there.
func strangeFiles(data string) []string {
	strange := map[string]bool{}
	_ = filepath.WalkDir(data, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		name, err := filepath.Rel(data, file)
		if name = filepath.ToSlash(name); err == nil && !slices.ContainsFunc(fileKinds, func(k fileKind) bool { return k.is(name) }) {
			strange[blur.ReplaceAllString(name, "N")] = true
		}
		return nil
	})
	return slices.Sorted(maps.Keys(strange))
}

// blur finds what differs between files of one kind.
var blur = regexp.MustCompile(`[0-9a-f]{16,}|[0-9]+`)
