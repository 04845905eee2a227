package edge

import (
	"syscall"
	"testing"
	"time"
)

// handshakesPerCore is the bar, in mutual handshakes per second of processor time.
const handshakesPerCore = 300

// processorTime returns what this process has used.
func processorTime(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHandshake connects, and has a line echoed, so that both ends have verified
// each other. Both are in this process: a server has half of the work.
func BenchmarkHandshake(b *testing.B) {
	_, sc, cc := fleet(b)
	addr := serveEcho(b, newNode(sc), ListenOptions{})
	client := newNode(cc)
	before := processorTime(b)
	for b.Loop() {
		if err := dialCall(b.Context(), client.Edge, addr); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/(processorTime(b)-before).Seconds(), "handshakes/s/core")
}

func TestHandshakeRate(t *testing.T) {
	_, sc, cc := fleet(t)
	server := newNode(sc)
	addr := serveEcho(t, server, ListenOptions{})
	client := newNode(cc)
	const n = 200
	before := processorTime(t)
	for range n {
		if err := dialCall(t.Context(), client.Edge, addr); err != nil {
			t.Fatal(err)
		}
	}
	rate := n / (processorTime(t) - before).Seconds()
	t.Logf("%.0f mutual handshakes per second and core, both ends together", rate)
	if rate < handshakesPerCore && !raceDetector {
		t.Errorf("the bar is %d", handshakesPerCore)
	}
	if got := server.metric(t, "qs_edge_handshake_seconds"); got != n {
		t.Errorf("%v handshakes are measured", got)
	}
}
