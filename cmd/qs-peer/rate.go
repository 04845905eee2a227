package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// rate is a flag in bytes per second, like 20MB/s. 0 means no limit.
type rate int64

func (r *rate) String() string {
	if *r == 0 {
		return "0"
	}
	return term.Bytes(int64(*r)) + "/s"
}

func (r *rate) Type() string { return "rate" }

func (r *rate) Set(s string) error {
	v, unit, err := parseUnit(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "/s"), byteUnits)
	switch {
	case err != nil || math.IsNaN(v) || math.IsInf(v, 0):
		return fmt.Errorf("%q is no rate; want a number of bytes per second with a unit, like 20MB/s or 512KiB/s, or 0 for no limit", s)
	case v < 0:
		return fmt.Errorf("%q is negative", s)
	case unit == 0 && v != 0:
		return fmt.Errorf("%q lacks a unit, like 20MB/s (kB, MB, GB, KiB, MiB, GiB, or B)", s)
	case v*unit >= math.MaxInt64:
		return fmt.Errorf("%q is more than can be counted", s)
	case v > 0 && v*unit < 1:
		return fmt.Errorf("%q is less than a byte per second", s)
	}
	*r = rate(v * unit)
	return nil
}
