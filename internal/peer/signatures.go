package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/signing"
	"github.com/qs-peer/qs-peer/internal/snapshot"
)

// signatures are what a node signs with, and whose signatures it believes.
type signatures struct {
	signer  *signing.Signer  // nil: it signs nothing
	trusted *signing.Trusted // nil: nothing has to be signed
	need    int              // how many managers have to stand behind a manifest
	logger  *slog.Logger
	changed *signal // told when the trusted keys change

	refusals *prometheus.CounterVec
	reloads  *prometheus.CounterVec

	mu   sync.Mutex       // guards told
	told map[refusal]bool // what was logged
}

// refusal is a reason to refuse what somebody handed out, to be logged once.
type refusal struct {
	what   string
	reason string
}

// maxTold bounds what is remembered of refusals.
const maxTold = 1024

// openSignatures reads the keys.
func openSignatures(o *Options, reg prometheus.Registerer) (*signatures, error) {
	s := &signatures{need: max(o.RequireSignatures, 1), logger: o.Logger.With("part", "signing"), changed: newSignal(), told: map[refusal]bool{}}
	if o.TrustedKeys == "" {
		return s, nil
	}
	var err error
	if s.trusted, err = signing.LoadTrusted(o.TrustedKeys); err != nil {
		return nil, fmt.Errorf("--trusted-keys: %w", err)
	}
	if names := s.trusted.Names(); s.need > len(names) {
		return nil, fmt.Errorf("--require-signatures %d: the trusted keys are of %d names, %q: nothing could ever be accepted; trust more keys, or require less",
			s.need, len(names), names)
	}
	if o.SigningKey != "" {
		if s.signer, err = signing.LoadSigner(o.SigningKey); err != nil {
			return nil, fmt.Errorf("--signing-key: %w", err)
		}
		if !s.trusted.Knows(s.signer) {
			return nil, fmt.Errorf("--signing-key %s: its key %s is not among the trusted ones in %s: nobody would believe what this manager signs; add it there, and at all other nodes first",
				o.SigningKey, s.signer, o.TrustedKeys)
		}
	}
	f := promauto.With(reg)
	s.refusals = f.NewCounterVec(prometheus.CounterOpts{
		Name: "qs_signing_refused_manifests_total",
		Help: "Manifests of snapshots that were refused, by reason.",
	}, []string{"reason"})
	s.reloads = f.NewCounterVec(prometheus.CounterOpts{
		Name: "qs_signing_reloads_total",
		Help: "Times that a file of keys was found changed, by file (signing, trusted) and result (done, failed).",
	}, []string{"file", "result"})
	return s, nil
}

// register exposes what is required and what lacks it.
func (s *signatures) register(reg prometheus.Registerer, held *shelf) {
	if s.trusted == nil {
		return
	}
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_signing_trusted_signers", Help: "Different names among the trusted keys.",
	}, func() float64 { return float64(len(s.trusted.Names())) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_signing_required_signatures", Help: "Signatures that a manifest needs.",
	}, func() float64 { return float64(s.need) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_signing_held_back_snapshots", Help: "Snapshots on this node's disk that are neither offered nor opened, because they lack signatures.",
	}, func() float64 { return float64(len(held.all()) - len(held.list())) })
}

// validateKeys checks what can be said of the keys without reading them.
func (o *Options) validateKeys() error {
	switch {
	case o.TrustedKeys == "" && o.tls():
		return errors.New("--trusted-keys is missing: with TLS only what managers signed is believed, because others pass it on")
	case o.TrustedKeys == "" && o.SigningKey != "":
		return errors.New("--signing-key needs --trusted-keys, among which it is")
	case o.TrustedKeys == "" && o.RequireSignatures != 0:
		return errors.New("--require-signatures needs --trusted-keys: whose signatures?")
	case o.RequireSignatures < 0:
		return fmt.Errorf("--require-signatures %d: want 1 or more", o.RequireSignatures)
	case o.Role == gossip.Worker && o.SigningKey != "":
		return errors.New("--signing-key is for managers: workers sign nothing")
	case o.Role == gossip.Manager && o.TrustedKeys != "" && o.SigningKey == "":
		return errors.New("--signing-key is missing: where there are trusted keys a manager signs what it publishes")
	}
	return nil
}

// watch reads the files again when they change.
func (s *signatures) watch(ctx context.Context) {
	if s.trusted == nil {
		return
	}
	told := func(file string) func(error) {
		return func(err error) {
			if err != nil {
				s.reloads.WithLabelValues(file, "failed").Inc()
				s.logger.Error("a file of keys changed and can not be used; the keys from before stay in use", "file", file, "err", err)
				return
			}
			s.reloads.WithLabelValues(file, "done").Inc()
			s.logger.Info("keys reloaded", "file", file, "trusted", s.trusted.Names())
			if s.signer != nil && !s.trusted.Knows(s.signer) {
				s.logger.Error("the signing key is not among the trusted ones: what this manager signs is refused", "key", s.signer)
			}
			s.changed.notify()
		}
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { s.trusted.Watch(ctx, told("trusted")) })
	if s.signer != nil {
		watching.Go(func() { s.signer.Watch(ctx, told("signing")) })
	}
}

// open returns the manifest in a note that need managers signed; without trusted
// keys, whatever it says.
func (s *signatures) open(note []byte, need int) (*snapshot.Manifest, error) {
	if s.trusted == nil {
		return snapshot.ParseNote(note)
	}
	text, _, err := s.trusted.Open(note, need)
	if err != nil {
		return nil, err
	}
	return snapshot.ParseManifest(text)
}

// enough reports whether as many managers stand behind a note as are required.
func (s *signatures) enough(note []byte) bool {
	_, err := s.open(note, s.need)
	return err == nil
}

// ours reports whether this node signed a note: it minted what the note is of.
func (s *signatures) ours(note []byte) bool {
	return s.signer != nil && slices.Contains(s.by(note), s.signer.Name())
}

// by returns who signed a note, of those that are trusted.
func (s *signatures) by(note []byte) []string {
	if s.trusted == nil {
		return nil
	}
	_, by, err := s.trusted.Open(note, 1)
	if err != nil {
		return nil
	}
	return by
}

// combine adds the signatures that count in more to those in note, which may be
// nil. Both are of one text.
func (s *signatures) combine(note, more []byte) ([]byte, error) {
	if s.trusted == nil || bytes.Equal(note, more) {
		return more, nil
	}
	all, _, err := s.trusted.Combine(note, more)
	return all, err
}

// mayTrim reports whether somebody could begin with one of these snapshots, and so
// does not need the log before it.
func (s *signatures) mayTrim(own []*snapshot.Snapshot, offers []replica.Offer) bool {
	if s.trusted == nil {
		return true
	}
	// A manager offers what it minted before others signed it.
	settled := func(o replica.Offer) bool {
		managers := 0
		for _, h := range o.Holders {
			if h.Manager {
				managers++
			}
		}
		return managers >= s.need
	}
	return slices.ContainsFunc(own, func(snap *snapshot.Snapshot) bool { return s.enough(snap.Note) }) || slices.ContainsFunc(offers, settled)
}

// manifestError is why a manifest is refused that is signed.
type manifestError struct {
	reason string // the metric's label
	err    error
}

func (e *manifestError) Error() string { return e.err.Error() }
func (e *manifestError) Unwrap() error { return e.err }

// reasonOf returns why a manifest was refused, empty if it was not.
func reasonOf(err error) string {
	if m, ok := errors.AsType[*manifestError](err); ok {
		return m.reason
	}
	return string(signing.ReasonOf(err))
}

// refused counts a refusal, and logs the first of its kind. Other errors, such as
// of the network, are none.
func (s *signatures) refused(what, from string, err error) {
	reason := reasonOf(err)
	if s.trusted == nil || reason == "" {
		return
	}
	s.refusals.WithLabelValues(reason).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := (refusal{what, reason}); !s.told[r] {
		if len(s.told) >= maxTold {
			clear(s.told)
		}
		s.told[r] = true
		level := slog.LevelWarn
		if reason == string(signing.TooFew) { // as long as the others replay
			level = slog.LevelInfo
		}
		s.logger.Log(context.Background(), level, "refused a snapshot's manifest", "snapshot", what, "from", from, "reason", reason, "err", err)
	}
}
