package bench

import (
	"os"
	"strconv"
)

// scaled returns n times QS_BENCH_SCALE.
func scaled(n int) int {
	scale, err := strconv.ParseFloat(os.Getenv("QS_BENCH_SCALE"), 64)
	if err != nil {
		scale = 1
	}
	return int(float64(n) * scale)
}
