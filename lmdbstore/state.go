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
	metaFormat  = "format"
	metaPos     = "pos"
	metaTime    = "time"
)

// State is where an environment stands.
type State struct {
	Dataset txlog.DatasetID // zero while nothing was applied
	Pos     txlog.Pos
	Time    time.Time // the writer's clock in the entry at Pos
}

func encodePos(p txlog.Pos) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, p.Seq), p.Hash[:]...)
}

func encodeTime(t time.Time) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(t.UnixNano()))
}

func encodeFormat() []byte { return binary.LittleEndian.AppendUint32(nil, Format) }

// readState decodes the database meta, which get reads. An environment to which
// nothing was applied has no pairs in it.
func readState(get func(key string) (value []byte, ok bool, err error)) (State, error) {
	var s State
	values := make(map[string][]byte, 4)
	for _, f := range []struct {
		key  string
		size int
	}{{metaFormat, 4}, {metaDataset, len(s.Dataset)}, {metaPos, 8 + len(s.Pos.Hash)}, {metaTime, 8}} {
		v, ok, err := get(f.key)
		switch {
		case err != nil:
			return State{}, fmt.Errorf("read %q: %w", f.key, err)
		case !ok:
			continue
		case f.key == metaFormat && len(v) == 4 && binary.LittleEndian.Uint32(v) > Format:
			return State{}, fmt.Errorf("%w: %d; this program knows formats up to %d, upgrade it",
				ErrNewerFormat, binary.LittleEndian.Uint32(v), Format)
		case len(v) != f.size:
			return State{}, fmt.Errorf("%w: %q is %d bytes long, not %d", ErrDamaged, f.key, len(v), f.size)
		}
		values[f.key] = v
	}
	switch {
	case len(values) == 0:
		return State{}, nil
	case len(values) < 4:
		return State{}, fmt.Errorf("%w: its position, dataset, format or time is missing", ErrDamaged)
	case binary.LittleEndian.Uint32(values[metaFormat]) != Format:
		return State{}, fmt.Errorf("%w: it has format %d, which never was", ErrDamaged, binary.LittleEndian.Uint32(values[metaFormat]))
	}
	copy(s.Dataset[:], values[metaDataset])
	s.Pos.Seq = binary.LittleEndian.Uint64(values[metaPos])
	copy(s.Pos.Hash[:], values[metaPos][8:])
	s.Time = time.Unix(0, int64(binary.LittleEndian.Uint64(values[metaTime]))).UTC()
	if s.Pos.Seq == 0 || s.Pos.Hash.IsZero() || s.Dataset.IsZero() {
		return State{}, fmt.Errorf("%w: dataset %s at position %s cannot be", ErrDamaged, s.Dataset, s.Pos)
	}
	return s, nil
}
