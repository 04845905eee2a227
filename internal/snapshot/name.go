package snapshot

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/qs-peer/qs-peer/txlog"
)

// What follows NAME in the directory.
const (
	dataExt     = ".mdb"
	torrentExt  = ".torrent"
	manifestExt = ".manifest"
	partExt     = ".part"
	mintExt     = ".mint"
	damagedExt  = ".damaged" // after one of the others
)

const namePrefix = "snapshot-"

// Name returns the snapshot's file name without extension.
func Name(pos txlog.Pos) string {
	return fmt.Sprintf("%s%020d-%x", namePrefix, pos.Seq, pos.Hash[:8])
}

// splitName tells the files of this package from others, and of which snapshot
// and kind they are.
func splitName(file string) (name string, seq uint64, ext string, ok bool) {
	name, ext, ok = strings.Cut(file, ".")
	digits, isOurs := strings.CutPrefix(name, namePrefix)
	number, hash, dash := strings.Cut(digits, "-")
	if !ok || !isOurs || !dash || len(number) != 20 || len(hash) != 16 {
		return "", 0, "", false
	}
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return "", 0, "", false
	}
	return name, seq, "." + ext, true
}
