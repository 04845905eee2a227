package peer

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// caller is who sent a request.
type caller struct {
	id    trust.Identity // as the connection's certificate says; zero without one
	local bool           // over the Unix socket, which its file's mode guards
	addr  string         // of the other end
}

func callerOf(c net.Conn) caller {
	if c.LocalAddr().Network() == "unix" {
		return caller{local: true}
	}
	id, _ := trust.PeerOf(c)
	return caller{id: id, addr: c.RemoteAddr().String()}
}

func callerOfRequest(r *http.Request) caller {
	id, _ := trust.FromState(r.TLS)
	return caller{id: id, addr: r.RemoteAddr}
}

// String names the caller in the log: an identity, or else a host.
func (c caller) String() string {
	if name := c.holder(); name != "" {
		return name
	}
	host, _, err := net.SplitHostPort(c.addr)
	if err != nil {
		return c.addr
	}
	return host
}

// holder names the caller where shares are kept apart. Those without a
// certificate are "", who has no share of its own: without TLS nobody knows who is who.
func (c caller) holder() string {
	switch {
	case c.local:
		return "local"
	case c.id.IsZero():
		return ""
	}
	return c.id.String()
}

// access decides who may do what at the HTTP and RESP listeners, how often, and with how
// much of the node's memory.
type access struct {
	tls   bool // without TLS, everybody who can connect may do everything
	rates *rates
	// refused counts and logs a refusal (edge.Edge.Refused).
	refused func(listener string, reason trust.Reason, who string, err error)

	memory  *quota // bytes of requests that arrive and answers that leave
	scans   *quota // scans under way
	reports *quota // status and metrics under way
}

func newAccess(tls bool, l ClientLimits, refused func(string, trust.Reason, string, error), reg prometheus.Registerer) *access {
	a := &access{
		tls: tls, rates: newRates(l.Rate), refused: refused,
		memory:  newQuota("the bytes of memory for requests and answers", l.Memory, l.Memory/4*3),
		scans:   newQuota("the places for scans", maxScans, scanShare),
		reports: newQuota("the places for reports", maxReports, reportShare),
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_client_memory_bytes", Help: "Memory that requests and answers of HTTP and RESP clients hold.",
	}, func() float64 { return float64(a.memory.used()) }))
	return a
}

// lease returns an empty lease of the memory for a caller's request.
func (a *access) lease(c caller) lease {
	return lease{quota: a.memory, holder: c.holder(), patience: memoryPatience}
}

// check returns a *forbiddenError if the caller's role may not do that. On a node
// that speaks TLS a caller without an identity may do nothing.
func (a *access) check(c caller, v trust.Verb) error {
	if !a.tls || c.local || c.id.Role.May(v) {
		return nil
	}
	return &forbiddenError{c.id, v}
}

// Why clients are refused, or cut off, besides what package trust and package edge find.
const (
	tooFast   trust.Reason = "too_fast"  // ClientLimits.Rate
	tooSlow   trust.Reason = "too_slow"  // see pace
	busy      trust.Reason = "busy"      // ClientLimits.Memory, or no place for a scan or a report
	malformed trust.Reason = "malformed" // what is no request, or not complete in time
)

// tell counts and logs that a caller was refused or cut off, if err is a reason for that.
func (a *access) tell(listener string, c caller, err error) {
	var why trust.Reason
	switch {
	case is[*forbiddenError](err):
		why = trust.WrongRole
	case is[*rateError](err):
		why = tooFast
	case is[*busyError](err):
		why = busy
	case is[*protocolError](err):
		why = malformed
	case errors.Is(err, os.ErrDeadlineExceeded):
		why = tooSlow
	default:
		return
	}
	a.refused(listener, why, c.String(), err)
}

// forbiddenError refuses what the caller's role may not do.
type forbiddenError struct {
	id   trust.Identity
	verb trust.Verb
}

// verbWords say what a verb is about.
var verbWords = map[trust.Verb]string{
	trust.VerbRead:     "read keys and values",
	trust.VerbWrite:    "write keys and values",
	trust.VerbSnapshot: "have snapshots published",
	trust.VerbScrub:    "have a node read and verify what it holds",
	trust.VerbStatus:   "see the node's status",
}

func (e *forbiddenError) Error() string {
	return fmt.Sprintf("%s has the role %s, which may not %s: that is for %s", e.id.Name, e.id.Role, verbWords[e.verb], strings.Join(e.allowed(), ", "))
}

// allowed returns the roles that may.
func (e *forbiddenError) allowed() []string {
	var names []string
	for _, r := range e.verb.Who() {
		names = append(names, string(r))
	}
	return names
}
