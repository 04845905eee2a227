package main

import (
	"fmt"
	"math"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// linkRate is a flag in bits per second, as tc writes it: 100mbit. 0 means no
// limit.
type linkRate lab.Rate

func (r *linkRate) String() string {
	if *r == 0 {
		return "0"
	}
	return lab.Rate(*r).String()
}

func (r *linkRate) Type() string { return "rate" }

func (r *linkRate) Set(s string) error {
	v, unit, err := parseUnit(s, bitUnits)
	switch {
	case err != nil || math.IsNaN(v) || unit == 0 && v != 0:
		return fmt.Errorf("%q is no rate of a link; want bits per second with a unit, like 100mbit or 1gbit (kbit, mbit, gbit), or 0 for no limit", s)
	case v < 0:
		return fmt.Errorf("%q is negative", s)
	case v > 0 && v*unit < 64e3 || v*unit > 100e9:
		return fmt.Errorf("%q: want 64kbit to 100gbit, or 0 for no limit", s)
	}
	*r = linkRate(v * unit / 8)
	return nil
}
