package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// byteSize is a flag in bytes, like 256MiB.
type byteSize int64

func (b *byteSize) String() string {
	return strings.NewReplacer(" ", "", ".0", "").Replace(term.Bytes(int64(*b)))
}

func (b *byteSize) Type() string { return "size" }

func (b *byteSize) Set(s string) error {
	v, unit, err := parseUnit(s, byteUnits)
	if err != nil || math.IsNaN(v) || v < 0 || unit == 0 || v*unit >= math.MaxInt64/1024 {
		return fmt.Errorf("%q is no size; want a number with a unit, like 256MiB (kB, MB, GB, KiB, MiB, GiB, or B)", s)
	}
	*b = byteSize(v * unit)
	return nil
}
