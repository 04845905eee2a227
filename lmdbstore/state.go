package lmdbstore

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Keys of the database meta; see the package's doc for the values.
const (
	metaDataset = "dataset"
	metaDigest  = "digest"
	metaFormat  = "format"
	metaPos     = "pos"
	metaTime    = "time"
)

// State is where an environment stands.
type State struct {
	Dataset txlog.DatasetID // zero while nothing was applied
	Pos     txlog.Pos
	Time    time.Time // the writer's clock in the entry at Pos
	Digest  Digest    // of the pairs there; zero in an environment of format 1
}

// metaFields are the entries of the database meta, in order. Format 1 has no
// digest.
var metaFields = []struct {
	key   string
	size  int // of the value
	value func(State) []byte
}{
	{metaDataset, len(txlog.DatasetID{}), func(s State) []byte { return s.Dataset[:] }},
	{metaDigest, len(Digest{}), func(s State) []byte { return s.Digest[:] }},
	{metaFormat, 4, func(State) []byte { return binary.LittleEndian.AppendUint32(nil, Format) }},
	{metaPos, 8 + len(txlog.Hash{}), func(s State) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, s.Pos.Seq), s.Pos.Hash[:]...)
	}},
	{metaTime, 8, func(s State) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(s.Time.UnixNano())) }},
}

// metaEntries returns how many entries the database meta has, unless it is empty.
func metaEntries(format int) int {
	if format == 1 {
		return len(metaFields) - 1
	}
	return len(metaFields)
}

// readState decodes the database meta, which get reads, and returns the format
// too. An environment to which nothing was applied has no pairs in it, and any
// format.
func readState(get func(key string) (value []byte, ok bool, err error)) (s State, format int, err error) {
	values := make(map[string][]byte, len(metaFields))
	for _, f := range metaFields {
		v, ok, err := get(f.key)
		switch {
		case err != nil:
			return State{}, 0, fmt.Errorf("read %q: %w", f.key, err)
		case !ok:
			continue
		case f.key == metaFormat && len(v) == 4 && binary.LittleEndian.Uint32(v) > Format:
			return State{}, 0, fmt.Errorf("%w: %d; this program knows formats up to %d, upgrade it",
				ErrNewerFormat, binary.LittleEndian.Uint32(v), Format)
		case len(v) != f.size:
			return State{}, 0, fmt.Errorf("%w: %q is %d bytes long, not %d", ErrDamaged, f.key, len(v), f.size)
		}
		values[f.key] = v
	}
	if len(values) == 0 {
		return State{}, Format, nil
	}
	if v, ok := values[metaFormat]; ok {
		format = int(binary.LittleEndian.Uint32(v))
	}
	switch {
	case values[metaFormat] != nil && format < OldestFormat:
		return State{}, 0, fmt.Errorf("%w: it has format %d, which never was", ErrDamaged, format)
	case len(values) != metaEntries(format) || format == 1 && values[metaDigest] != nil:
		return State{}, 0, fmt.Errorf("%w: its position, dataset, digest, format or time is missing", ErrDamaged)
	}
	copy(s.Dataset[:], values[metaDataset])
	copy(s.Digest[:], values[metaDigest])
	s.Pos.Seq = binary.LittleEndian.Uint64(values[metaPos])
	copy(s.Pos.Hash[:], values[metaPos][8:])
	s.Time = time.Unix(0, int64(binary.LittleEndian.Uint64(values[metaTime]))).UTC()
	if s.Pos.Seq == 0 || s.Pos.Hash.IsZero() || s.Dataset.IsZero() {
		return State{}, 0, fmt.Errorf("%w: dataset %s at position %s cannot be", ErrDamaged, s.Dataset, s.Pos)
	}
	return s, format, nil
}
