package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// linkRate is a flag in bits per second, as tc writes it: 100mbit. 0 means no
// limit.
type linkRate lab.Rate

var bitUnits = []struct {
	suffix string
	bits   float64
}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}}

func (r *linkRate) String() string {
	if *r == 0 {
		return "0"
	}
	return lab.Rate(*r).String()
}

func (r *linkRate) Type() string { return "rate" }

func (r *linkRate) Set(s string) error {
	number, unit := strings.ToLower(strings.TrimSpace(s)), 0.0
	for _, u := range bitUnits {
		if n, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(n), u.bits
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
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
