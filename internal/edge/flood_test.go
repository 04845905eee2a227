package edge

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// The defaults of ListenOptions.
const maxHandshakes, maxPerIdentity = 512, 512

// abuseBytes is how much memory an abuse may cost at its peak.
const abuseBytes = 64 << 20

// manyConns returns how many connections a flood has: 10,000, if there are descriptors
// for them. The race detector takes too long over so many.
func manyConns(t testing.TB) int {
	if raceDetector {
		return 1500
	}
	const many = 10000
	if most := descriptors(t) - 500; most < many {
		t.Logf("RLIMIT_NOFILE allows %d connections instead of %d", most, many)
		return most
	}
	return many
}

// peakMemory begins to measure this process's resident memory. The function it returns
// tells by how much the peak since then exceeds what there was.
func peakMemory(t testing.TB) func() int64 {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	// Linux: 5 resets the peak (proc(5)).
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("the peak of memory can not be reset: %v", err)
	}
	read := func(field string) int64 {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, field+":"); ok {
				kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return kb << 10
			}
		}
		t.Fatalf("no %s in /proc/self/status", field)
		return 0
	}
	before := read("VmRSS")
	return func() int64 { return read("VmHWM") - before }
}

// leastRounds is how many rounds a good client makes.
const leastRounds = 5

// service is what a good client sees while something goes on.
type service struct {
	calls, dials []time.Duration
	errs         []error
}

// serviceOf calls over a connection that was there, and connects anew, until over is closed.
func serviceOf(t testing.TB, client *Edge, addr string, over <-chan struct{}) <-chan *service {
	t.Helper()
	there, err := client.Dial(t.Context(), addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := call(there); err != nil {
		t.Fatal(err)
	}
	result := make(chan *service, 1)
	go func() {
		defer there.Close()
		s := &service{}
		defer func() { result <- s }()
		for {
			select {
			case <-over:
				if len(s.calls) >= leastRounds {
					return
				}
			case <-time.After(5 * time.Millisecond):
			}
			began := time.Now()
			err := call(there)
			s.calls = append(s.calls, time.Since(began))
			began = time.Now()
			err = errors.Join(err, dialCall(t.Context(), client, addr))
			s.dials = append(s.dials, time.Since(began))
			if err != nil {
				s.errs = append(s.errs, err)
			}
		}
	}()
	return result
}

func (s *service) check(t *testing.T) {
	t.Helper()
	if len(s.errs) > 0 {
		t.Errorf("%d of %d rounds of a good client failed, the first with: %v", len(s.errs), len(s.calls), s.errs[0])
	}
	slices.Sort(s.calls)
	slices.Sort(s.dials)
	t.Logf("a good client's %d rounds meanwhile: call median %v, worst %v; connect and call median %v, worst %v",
		len(s.calls), s.calls[len(s.calls)/2], s.calls[len(s.calls)-1], s.dials[len(s.dials)/2], s.dials[len(s.dials)-1])
	if raceDetector {
		return
	}
	if m := s.calls[len(s.calls)/2]; m > 250*time.Millisecond {
		t.Errorf("half of the calls took more than %v", m)
	}
	if m := s.dials[len(s.dials)/2]; m > time.Second {
		t.Errorf("half of the new connections took more than %v", m)
	}
}

// TestFloods: 10,000 connections, and as many handshakes as two processes can
// begin.
func TestFloods(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	conns := manyConns(t)
	for _, f := range []struct {
		name, mode string
		count      int
		reason     trust.Reason
		least      int // refusals
		hold       time.Duration
	}{
		{"many that say nothing", "silent", conns, TooManyHandshakes, conns - maxHandshakes, 0},
		{"many that begin a greeting of 15 KiB", "greet", conns, TooManyHandshakes, conns - maxHandshakes, 0},
		{"many that stop in the middle", "stall", conns / 4, TooManyHandshakes, conns/4 - maxHandshakes, 0},
		{"one of ours that opens very many", "member", conns / 5, TooManyOfIdentity, conns/5 - maxPerIdentity, 0},
		{"a storm of handshakes without a certificate", "storm", 800, trust.NoCertificate, 100, 3 * time.Second},
	} {
		t.Run(f.name, func(t *testing.T) {
			if raceDetector && (f.mode == "stall" || f.mode == "member") {
				t.Skip("the race detector takes too long over so many handshakes")
			}
			if raceDetector {
				f.least = 1
			}
			authority, server, worker := fleet(t)
			t.Setenv(certEnv, filepath.Dir(authority.Node(t, trust.RoleWorker, "w2").Cert))
			n := newNode(server)
			addr := serveEcho(t, n, ListenOptions{HandshakeTimeout: 10 * time.Second})
			over := make(chan struct{})
			good := serviceOf(t, newNode(worker).Edge, addr, over)
			extra := peakMemory(t)

			inFlight, watching := peakOf(t, n, "qs_edge_handshakes_in_flight", over)
			began := time.Now()
			a := startAbuser(t, f.mode, f.count, addr)
			var opened int
			if f.hold > 0 {
				pause(t, f.hold)
				opened = a.stop(t)
			} else if opened = a.line(t); opened != f.count {
				t.Errorf("the abuser opened %d of %d connections", opened, f.count)
			}
			took := time.Since(began)
			eventually(t, "they are refused", func() bool {
				return n.metric(t, "qs_edge_refused_total") >= float64(f.least)
			})
			close(over)
			s := <-good
			<-watching
			peak := extra()
			t.Logf("%d connections in %v; %v refused, %v of them %s; %d handshakes in flight at most; %.1f MiB more memory at the peak",
				opened, took.Round(time.Millisecond), n.metric(t, "qs_edge_refused_total"),
				n.metric(t, "qs_edge_refused_total", string(f.reason)), f.reason, *inFlight, float64(peak)/(1<<20))
			s.check(t)
			if n.metric(t, "qs_edge_refused_total", string(f.reason)) < float64(f.least) {
				t.Errorf("few were refused as %s", f.reason)
			}
			if *inFlight > maxHandshakes {
				t.Errorf("%d handshakes were in flight", *inFlight)
			}
			if peak > abuseBytes && !raceDetector {
				t.Errorf("%d bytes more memory, at most %d are allowed", peak, abuseBytes)
			}
			if got := n.log.with("reason=" + string(f.reason)); got != 1 {
				t.Errorf("%d lines in the log, want 1:\n%s", got, n.log)
			}
		})
	}
}

// TestPlainFlood: without TLS nobody tells strangers from others: those who were there
// first are served, and memory is bounded.
func TestPlainFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	conns := manyConns(t)
	n := newNode(nil)
	const most = 1000
	addr := serveEcho(t, n, ListenOptions{MaxConns: most})
	client := newNode(nil)
	there, err := client.Dial(t.Context(), addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	extra := peakMemory(t)
	a := startAbuser(t, "silent", conns, addr)
	if opened := a.line(t); opened != conns {
		t.Errorf("the abuser opened %d of %d connections", opened, conns)
	}
	eventually(t, "those over the limit are refused", func() bool {
		return n.metric(t, "qs_edge_refused_total", string(TooManyConnections)) == float64(conns-most+1)
	})
	peak := extra()
	t.Logf("%d connections, %d of them let in: %.1f MiB more memory at the peak", conns, most, float64(peak)/(1<<20))
	if peak > abuseBytes && !raceDetector {
		t.Errorf("%d bytes more memory", peak)
	}
	if got := n.metric(t, "qs_edge_connections"); got != most {
		t.Errorf("%v connections are open, want %d", got, most)
	}
	if err := call(there); err != nil {
		t.Errorf("one that was there before: %v", err)
	}
	if err := dialCall(t.Context(), client.Edge, addr); err == nil {
		t.Error("one too many was let in")
	}
	a.in.Close()
	eventually(t, "there is room again", func() bool { return dialCall(t.Context(), client.Edge, addr) == nil })
}

// peakOf watches a metric until over is closed.
func peakOf(t testing.TB, n *node, metric string, over <-chan struct{}) (*int, <-chan struct{}) {
	most, done := new(int), make(chan struct{})
	go func() {
		defer close(done)
		for {
			*most = max(*most, int(n.metric(t, metric)))
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return most, done
}

// pause lets an abuse go on for a time: that is what is measured.
func pause(t testing.TB, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
