package main

import "testing"

func TestRate(t *testing.T) {
	for in, want := range map[string]rate{
		"0": 0, "0MB/s": 0, "20MB/s": 20_000_000, "20 MB/s": 20_000_000, "1.5mib": 1536 << 10, "512KiB/s": 512 << 10,
		"100B/s": 100, "3GB": 3_000_000_000, "2GiB/s": 2 << 30, "64kb/s": 64_000,
	} {
		var r rate
		if err := r.Set(in); err != nil || r != want {
			t.Errorf("%q: %d %v, want %d", in, r, err, want)
		}
	}
	for _, in := range []string{"", "fast", "20", "-1MB/s", "MB/s", "1e30GB", "NaN B", "inf MB", "0.1B/s", "20MB/h"} {
		r := rate(7)
		if err := r.Set(in); err == nil || r != 7 {
			t.Errorf("%q: %d %v, want an error", in, r, err)
		}
	}
}
