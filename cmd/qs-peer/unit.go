package main

import (
	"strconv"
	"strings"
)

// unit is what a flag's number may be followed by.
type unit struct {
	suffix string // in lower case
	size   float64
}

// byteUnits and bitUnits are listed so that none is the end of a later one.
var (
	byteUnits = []unit{
		{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30},
		{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"b", 1},
	}
	bitUnits = []unit{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}}
)

// parseUnit splits a number from its unit, in any case. size is 0 without one.
func parseUnit(s string, units []unit) (number, size float64, err error) {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, u := range units {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			s, size = strings.TrimSpace(n), u.size
			break
		}
	}
	number, err = strconv.ParseFloat(s, 64)
	return number, size, err
}
