package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
)

// Where a node listens when an address is left empty.
const (
	DefaultSwarmAddr  = "127.0.0.1:6881"
	DefaultGossipAddr = "127.0.0.1:7946"
	DefaultPeerAddr   = "127.0.0.1:7947"
	DefaultHTTPAddr   = "127.0.0.1:7948"
)

// DefaultColo is the colo of a node that is told none.
const DefaultColo = "default"

// DefaultKeepSnapshots is how many snapshots a manager keeps.
const DefaultKeepSnapshots = 2

// Options configure a node. Data, Name and Role are required; with TLS the name is
// the certificate's, as the colo is. Listen addresses are host:port; port 0 takes a
// free one.
type Options struct {
	Data string // the data directory
	Name string // if both are given, the certificate's must be this
	Role gossip.Role
	Colo string // default: the certificate's, or else DefaultColo

	GossipAddr string // default DefaultGossipAddr
	SwarmAddr  string // default DefaultSwarmAddr
	PeerAddr   string // default DefaultPeerAddr
	HTTPAddr   string // default DefaultHTTPAddr
	RESPAddr   string // empty: no RESP over TCP
	RESPUnix   string // path of a Unix socket; empty: none
	// RESPUnixMode are the permissions of the socket's file: whoever may write to it has
	// every right. Default DefaultRESPUnixMode.
	RESPUnixMode fs.FileMode
	// Clients bounds what clients of HTTP and RESP may take.
	Clients ClientLimits

	// Join are gossip addresses of members. A manager with an empty data
	// directory creates a dataset if it joins nobody or Init is set, and
	// otherwise waits for the dataset of those it joins and follows it.
	Join []string
	Init bool
	// TLS are the node's certificate and what others' are checked against: all three
	// files, or none for plain TCP.
	TLS trust.Files
	// TrustedKeys is a file of the keys whose signatures are believed. Default: none,
	// nothing has to be signed. SigningKey, a manager's, is the file of its own.
	TrustedKeys, SigningKey string
	// RequireSignatures is how many managers have to have signed a snapshot's
	// manifest before it is fetched, offered or opened. Default 1 with TrustedKeys.
	RequireSignatures int
	// Insecure allows listening on other than loopback addresses without TLS.
	Insecure bool

	// SnapshotEvery is how often a manager publishes when there are new
	// entries. 0: only when asked.
	SnapshotEvery time.Duration
	// KeepSnapshots is how many snapshots a manager keeps and seeds. Default
	// DefaultKeepSnapshots. The log reaches back to the oldest of them.
	KeepSnapshots int
	// RetainSeeds is how many nodes have to offer a snapshot, if no manager does, for the log
	// to reach back to it. Default DefaultRetainSeeds, or all there are.
	RetainSeeds int
	// DiskBudget is how many bytes the data directory may take before the oldest snapshots
	// and log entries go, whoever needs them. The newest snapshot, what follows it and the
	// store stay, whatever they take. 0: no limit.
	DiskBudget int64
	// SegmentBytes is the size at which a segment of the log is sealed. Default: what
	// suits the budget. Tests take small ones.
	SegmentBytes int64
	// Sources are who is asked for the parts of a snapshot that this node's colo lacks,
	// the cheapest first: "other-colos" (their workers), "managers" or both.
	// Default: both, in this order.
	Sources []string
	// Rates are in bytes per second. 0: no limit. UploadRate and DownloadRate are
	// of all that goes to and comes from peers but gossip, EgressRate is of the
	// pieces that a manager sends, and MintRate of the snapshots it writes.
	UploadRate, DownloadRate, EgressRate, MintRate int64

	// VerifyStore says how much of the store is read before LMDB maps it. Default:
	// lmdbstore.VerifySampled; everything after an unclean stop.
	VerifyStore lmdbstore.Verify
	// ScrubEvery is the period in which everything that the node holds is read and
	// verified; 0: only when asked. ScrubRate is how fast, in bytes per second; 0: no
	// limit.
	ScrubEvery time.Duration
	ScrubRate  int64

	Version string
	Logger  *slog.Logger // default: discarded
}

// OptionError is what Start returns when the Options themselves are wrong:
// nothing was touched.
type OptionError struct{ Err error }

func (e *OptionError) Error() string { return e.Err.Error() }
func (e *OptionError) Unwrap() error { return e.Err }

// listenAddr is a listen address beside the flag that sets it, for errors.
type listenAddr struct{ flag, addr string }

func (o *Options) listenAddrs() []listenAddr {
	return []listenAddr{
		{"--gossip-addr", o.GossipAddr},
		{"--swarm-addr", o.SwarmAddr},
		{"--peer-addr", o.PeerAddr},
		{"--http-addr", o.HTTPAddr},
		{"--resp-addr", o.RESPAddr},
	}
}

// withDefaults returns o with what was left empty filled in.
func (o Options) withDefaults() Options {
	fill := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	fill(&o.GossipAddr, DefaultGossipAddr)
	fill(&o.SwarmAddr, DefaultSwarmAddr)
	fill(&o.PeerAddr, DefaultPeerAddr)
	fill(&o.HTTPAddr, DefaultHTTPAddr)
	fill(&o.Version, "unknown")
	if o.RESPUnixMode == 0 {
		o.RESPUnixMode = DefaultRESPUnixMode
	}
	o.Clients = o.Clients.withDefaults()
	if o.KeepSnapshots == 0 {
		o.KeepSnapshots = DefaultKeepSnapshots
	}
	if o.RetainSeeds == 0 {
		o.RetainSeeds = DefaultRetainSeeds
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// tls reports whether the node speaks TLS.
func (o *Options) tls() bool { return o.TLS != trust.Files{} }

// identify makes the node who its certificate says.
func (o *Options) identify(id trust.Identity) error {
	role := gossip.Role(id.Role)
	switch {
	case role != o.Role:
		return fmt.Errorf("certificate %s is of a %s (%s), and this is a %s", o.TLS.Cert, id.Role, id, o.Role)
	case o.Name != "" && o.Name != id.Name:
		return fmt.Errorf("--name is %s, and certificate %s is of %s: leave --name out, or use that node's certificate", o.Name, o.TLS.Cert, id.Name)
	case o.Colo != "" && o.Colo != id.Colo:
		return fmt.Errorf("--colo is %s, and certificate %s says %s: leave --colo out, or use a certificate of that colo", o.Colo, o.TLS.Cert, id.Colo)
	}
	o.Name, o.Colo = id.Name, id.Colo
	return nil
}

func (o *Options) validate(ctx context.Context) error {
	switch {
	case o.Data == "":
		return errors.New("no data directory given: pass --data DIR")
	case o.TLS != (trust.Files{}) && (o.TLS.CA == "" || o.TLS.Cert == "" || o.TLS.Key == ""):
		return errors.New("--tls-ca, --tls-cert and --tls-key go together: give all three")
	case o.tls() && o.Insecure:
		return errors.New("--insecure is for nodes without TLS: leave it out, or the --tls- files")
	case o.Name == "" && !o.tls():
		return errors.New("the node has no name: pass --name, unique in the fleet")
	case o.Role != gossip.Manager && o.Role != gossip.Worker:
		return fmt.Errorf("role %q: want %q or %q", o.Role, gossip.Manager, gossip.Worker)
	case o.Role == gossip.Worker && o.Init:
		return errors.New("--init creates a dataset, which only a manager does")
	case o.KeepSnapshots < 1:
		return fmt.Errorf("--keep-snapshots %d: a manager keeps at least one snapshot", o.KeepSnapshots)
	case o.ScrubEvery < 0:
		return fmt.Errorf("--scrub-every %v is negative", o.ScrubEvery)
	case o.RetainSeeds < 1:
		return fmt.Errorf("--retain-seeds %d: a snapshot that nobody offers holds nothing", o.RetainSeeds)
	case o.DiskBudget < 0:
		return fmt.Errorf("--disk-budget %d is negative; 0 is no limit", o.DiskBudget)
	case o.SnapshotEvery < 0:
		return fmt.Errorf("--snapshot-every %v is negative", o.SnapshotEvery)
	case sourcesError(o.Sources) != nil:
		return sourcesError(o.Sources)
	case o.validateKeys() != nil:
		return o.validateKeys()
	case min(o.UploadRate, o.DownloadRate, o.EgressRate, o.MintRate, o.ScrubRate) < 0:
		return errors.New("a rate is negative: rates are in bytes per second, 0 for no limit")
	case o.Role == gossip.Worker && o.EgressRate > 0:
		return errors.New("--egress-rate limits what a manager sends; for a worker there is --upload-rate")
	case o.UploadRate > 0 && o.EgressRate > o.UploadRate:
		return fmt.Errorf("--egress-rate is %d bytes/s, above --upload-rate, %d, which limits it already: lower it, or leave it out",
			o.EgressRate, o.UploadRate)
	}
	if err := o.Clients.validate(); err != nil {
		return err
	}
	if err := checkMode(o.RESPUnixMode); err != nil {
		return fmt.Errorf("--resp-unix-mode %#o: %w", o.RESPUnixMode, err)
	}
	for _, l := range o.listenAddrs() {
		if l.addr == "" {
			continue
		}
		if err := l.validate(ctx, o.Insecure || o.tls()); err != nil {
			return err
		}
	}
	for _, addr := range o.Join {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("--join %q: want host:port of a member's gossip address: %w", addr, err)
		}
	}
	return nil
}

func (l listenAddr) validate(ctx context.Context, anywhere bool) error {
	host, _, err := net.SplitHostPort(l.addr)
	if err != nil {
		return fmt.Errorf("%s %q: want host:port: %w", l.flag, l.addr, err)
	}
	if anywhere {
		return nil
	}
	local, err := isLoopback(ctx, host)
	if err != nil {
		return fmt.Errorf("%s %q: %w", l.flag, l.addr, err)
	}
	if !local {
		return fmt.Errorf("%s %s reaches beyond this machine without TLS: whoever can connect could read, write and join; "+
			"give --tls-ca, --tls-cert and --tls-key (qs-peer ca makes some to try), listen on a loopback address, or pass --insecure if the network is trusted", l.flag, l.addr)
	}
	return nil
}

// isLoopback reports whether every address of host is of this machine only. An
// empty host listens everywhere.
func isLoopback(ctx context.Context, host string) (bool, error) {
	if host == "" {
		return false, nil
	}
	if strings.EqualFold(host, "localhost") {
		return true, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if !a.Unmap().IsLoopback() {
			return false, nil
		}
	}
	return true, nil
}

// sources are the words for whom a node asks.
var sources = map[string]p2p.Source{"other-colos": p2p.FromOtherColos, "managers": p2p.FromManagers}

func sourcesError(words []string) error {
	for i, w := range words {
		if _, ok := sources[w]; !ok || slices.Contains(words[:i], w) {
			return fmt.Errorf("--sources %q: want other-colos, managers or both, the cheapest first, each once", strings.Join(words, ","))
		}
	}
	return nil
}
