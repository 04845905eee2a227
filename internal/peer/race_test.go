//go:build race

package peer

// raceDetector takes several times the memory.
const raceDetector = true
