package edge

import (
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// Why a connection is refused, besides what package trust finds.
const (
	// TooManyConnections: the listener has ListenOptions.MaxConns.
	TooManyConnections trust.Reason = "too_many_connections"
	// TooManyOfIdentity: the identity has ListenOptions.MaxPerIdentity.
	TooManyOfIdentity trust.Reason = "too_many_of_identity"
	// TooManyHandshakes: Options.MaxHandshakes were in flight, and this one's
	// host had most of them.
	TooManyHandshakes trust.Reason = "too_many_handshakes"
	// SlowHandshake: it took longer than ListenOptions.HandshakeTimeout.
	SlowHandshake trust.Reason = "slow_handshake"
	// BadHandshake: it is TLS, but not as it should be: an old version, say.
	BadHandshake trust.Reason = "bad_handshake"
	// HungUp: the other end went away in the middle, as some health checks do.
	HungUp trust.Reason = "hung_up"
	// AcceptFailed: the kernel gave no connection, for lack of descriptors, say.
	AcceptFailed trust.Reason = "accept_failed"
)

// reasons are why a connection can be refused.
var reasons = []trust.Reason{
	trust.NoCertificate, trust.UnknownAuthority, trust.Expired, trust.BadCertificate, trust.WrongDomain,
	trust.BadIdentity, trust.WrongName, trust.WrongRole, trust.NotTLS, trust.Refused,
	TooManyConnections, TooManyOfIdentity, TooManyHandshakes, SlowHandshake, BadHandshake, HungUp, AcceptFailed,
}

const (
	// refusalInterval is the least time between two log lines about the same.
	refusalInterval = time.Minute
	// maxRefusals bounds what is remembered to keep that.
	maxRefusals = 1024
	// maxRefusalText bounds the text of an error in the log, in bytes: a stranger may
	// have had a hand in it.
	maxRefusalText = 512
)

// Refused counts that somebody was refused at a listener, and logs it unless the
// same (listener, reason, who) was logged less than a minute ago. who is an identity,
// or else a host without its port. reason is one of few words: it becomes a metric
// label. When very many are refused at a time, those over 1,024 share a line per
// listener and reason.
func (e *Edge) Refused(listener string, reason trust.Reason, who string, err error) {
	e.metrics.refused.WithLabelValues(listener, string(reason)).Inc()
	k := refusal{listener, reason, who}
	silent, ok := e.refusals.tell(&k, time.Now())
	if !ok {
		return
	}
	attrs := []any{"listener", listener, "reason", string(reason), "who", k.who}
	if err != nil {
		attrs = append(attrs, "err", clip(err.Error()))
	}
	if silent > 0 {
		attrs = append(attrs, "since_last_line", silent)
	}
	if reason == HungUp {
		e.log.Debug("connection refused", attrs...)
		return
	}
	e.log.Warn("refused", attrs...)
}

func clip(s string) string {
	if len(s) > maxRefusalText {
		return s[:maxRefusalText] + "…"
	}
	return s
}

// refusal is what is logged once in a while.
type refusal struct {
	listener string
	reason   trust.Reason
	who      string
}

// refusals remembers what was logged of late.
type refusals struct {
	mu     sync.Mutex // guards what follows
	logged map[refusal]*logged
}

type logged struct {
	at     time.Time
	silent int // refusals since then
}

// everybodyElse stands for those that there is no room to remember.
const everybodyElse = "others"

// tell reports whether a refusal is to be logged now, and how many were not since the
// last time. It changes k.who if there is no room to remember.
func (r *refusals) tell(k *refusal, now time.Time) (silent int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.logged == nil {
		r.logged = make(map[refusal]*logged)
	}
	l := r.logged[*k]
	if l == nil && len(r.logged) >= maxRefusals {
		k.who = everybodyElse
		if l = r.logged[*k]; l == nil || now.Sub(l.at) >= refusalInterval {
			r.forget(now)
		}
	}
	if l == nil {
		r.logged[*k] = &logged{at: now}
		return 0, true
	}
	if now.Sub(l.at) < refusalInterval {
		l.silent++
		return 0, false
	}
	silent = l.silent
	*l = logged{at: now}
	return silent, true
}

// forget drops what would be logged again anyway. r.mu is held.
func (r *refusals) forget(now time.Time) {
	for k, l := range r.logged {
		if k.who != everybodyElse && now.Sub(l.at) >= refusalInterval {
			delete(r.logged, k)
		}
	}
}
