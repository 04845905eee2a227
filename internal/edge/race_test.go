//go:build race

package edge

// raceDetector multiplies what things cost: bars on time and memory are for builds
// without it.
const raceDetector = true
