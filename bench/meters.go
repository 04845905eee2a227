package bench

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// meters are what a run's egress is told by.
type meters struct {
	payload int64 // bytes of pieces that managers sent, as they count them
	frames
	// Of all processors together, whatever they did, and could have done.
	worked, processors time.Duration
}

// sentMetrics are the counters of payload sent: to the swarm, and of pieces asked for.
var sentMetrics = []string{"qs_swarm_sent_bytes_total", "qs_p2p_pieces_served_bytes_total"}

// meters reads all counters. Those of a manager that was killed are what they
// were when it was last asked.
func (r *round) meters() (m meters, err error) {
	for _, n := range r.managers {
		payload, err := n.sent()
		if err != nil {
			return m, err
		}
		m.payload += payload
	}
	if m.worked, m.processors, err = machineTime(); err != nil {
		return m, err
	}
	m.frames, err = r.frames()
	return m, err
}

// sent returns how much payload the node says it has sent.
func (n *swarmNode) sent() (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead {
		return n.lastSent, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var text string
	if err := n.node.Call(ctx, http.MethodGet, "/metrics", nil, &text); err != nil {
		return 0, err
	}
	var total float64
	for line := range strings.Lines(text) {
		for _, name := range sentMetrics {
			rest, ok := strings.CutPrefix(line, name)
			if !ok || (rest[0] != ' ' && rest[0] != '{') {
				continue
			}
			fields := strings.Fields(rest)
			v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, err
			}
			total += v
		}
	}
	n.lastSent = int64(total)
	return n.lastSent, nil
}
