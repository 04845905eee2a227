package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/peer"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

// leaveTimeout bounds a graceful stop.
const leaveTimeout = 10 * time.Second

// node is a manager or worker to be run in the foreground.
type node struct {
	peer   peer.Options
	config string

	upload, download, egress, mint, scrub rate
	verifyStore                           string
	clients                               clientLimits

	logLevel, logFormat string
	budget, segment     byteSize
}

// nodeCommand returns cmd as the command that runs a node of a role.
func nodeCommand(role gossip.Role, cmd *cobra.Command) *cobra.Command {
	n := &node{peer: peer.Options{Role: role, Version: release()}}
	cmd.Args = wantArgs(0, 0, "")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := n.complete(cmd); err != nil {
			return err
		}
		return n.run(cmd)
	}
	n.flags(cmd)
	return cmd
}

func (n *node) flags(cmd *cobra.Command) {
	f, o := cmd.Flags(), &n.peer
	f.StringVar(&o.Data, "data", "", "data `directory`, made if need be (required)")
	f.StringVar(&n.config, "config", "", "YAML `file` with the same names as these flags, which win over it (default none)")
	f.StringVar(&o.Name, "name", "", "`name` of the node, unique in the fleet (default: the certificate's, or without TLS HOSTNAME-DIR, after the machine and the data directory's last element)")
	f.StringVar(&o.Colo, "colo", "", "`place` of the node: pieces and log entries come from the same place if they can (default: the certificate's, or without TLS \""+peer.DefaultColo+"\")")
	f.StringSliceVar(&o.Join, "join", nil, "gossip `addresses` of members to join, host:port,… (default none)")
	if o.Role == gossip.Manager {
		f.BoolVar(&o.Init, "init", false, "create a dataset and take its writes even when joining others (default false: a new manager that joins nobody does, one that joins follows)")
	}
	f.StringVar(&o.GossipAddr, "gossip-addr", peer.DefaultGossipAddr, "listen here for gossip, TCP and UDP; port 0 takes a free one, here and below")
	f.StringVar(&o.SwarmAddr, "swarm-addr", peer.DefaultSwarmAddr, "listen here for the torrent swarm")
	f.StringVar(&o.PeerAddr, "peer-addr", peer.DefaultPeerAddr, "listen here for peers that stream the log and ask for pieces of snapshots")
	f.StringVar(&o.HTTPAddr, "http-addr", peer.DefaultHTTPAddr, "listen here for HTTP: the commands, metrics, health")
	f.StringVar(&o.RESPAddr, "resp-addr", "127.0.0.1:7949", "listen here for Redis clients; \"\" does not")
	f.StringVar(&o.RESPUnix, "resp-unix", "", "listen for Redis clients on this Unix socket `path` too (default none)")
	n.clients.flags(f, &o.Clients)
	f.StringVar(&o.TLS.CA, "tls-ca", "", "`file` of the authorities' certificates that all others' are checked against (default none: no TLS)")
	f.StringVar(&o.TLS.Cert, "tls-cert", "", "`file` of this node's certificate, which says its role, colo and name (default none: no TLS)")
	f.StringVar(&o.TLS.Key, "tls-key", "", "`file` of the certificate's key, for this node only to read (default none: no TLS)")
	f.StringVar(&o.TrustedKeys, "trusted-keys", "", "`file` of the keys whose signatures are believed, one NAME+HASH+DATA a line; reloaded when it changes (default none: snapshots need not be signed)")
	f.IntVar(&o.RequireSignatures, "require-signatures", 0, "how many managers must have signed a snapshot before it is fetched, offered or opened (default 1 with --trusted-keys)")
	if o.Role == gossip.Manager {
		f.StringVar(&o.SigningKey, "signing-key", "", "`file` of this manager's signing key, for this node only to read (default none; required with --trusted-keys)")
	}
	f.BoolVar(&o.Insecure, "insecure", false, "listen beyond this machine without TLS: on trusted networks only (default false)")
	if o.Role == gossip.Manager {
		f.DurationVar(&o.SnapshotEvery, "snapshot-every", time.Hour, "publish a snapshot so often when there are new entries; 0 only when asked")
		f.IntVar(&o.KeepSnapshots, "keep-snapshots", peer.DefaultKeepSnapshots, "keep and seed the newest so many snapshots; the log reaches back to the oldest")
		f.Var(&n.mint, "mint-rate", "write snapshots at most so fast, like 100MB/s; 0 is no limit (default 0)")
		f.Var(&n.egress, "egress-rate", "send snapshots at most so fast, like 20MB/s, within --upload-rate; 0 is no limit (default 0)")
	}
	f.IntVar(&o.RetainSeeds, "retain-seeds", peer.DefaultRetainSeeds, "keep the log back to the oldest snapshot that a manager, this node, or so many others offer")
	f.Var(&n.budget, "disk-budget", "let the data directory take so much, like 200GiB, then drop the oldest snapshots and log entries; 0 is no limit (default 0)")
	// Small segments are for tests: many of them are no use to anybody else.
	f.Var(&n.segment, "segment-size", "seal a segment of the log at this size (default: what suits --disk-budget)")
	_ = f.MarkHidden("segment-size") // it is there
	f.StringVar(&n.verifyStore, "verify-store", lmdbstore.VerifySampled.String(), "read this much of the store before it is opened: quick, sampled or full; after an unclean stop it is always full")
	f.DurationVar(&o.ScrubEvery, "scrub-every", peer.DefaultScrubEvery, "read and verify everything that the node holds once in so long; 0 only when asked")
	n.scrub = peer.DefaultScrubRate
	f.Var(&n.scrub, "scrub-rate", "read at most so fast for that; 0 is no limit")
	f.StringSliceVar(&o.Sources, "sources", []string{"other-colos", "managers"}, "ask these for the parts of a snapshot that no worker of the colo has, the cheapest first")
	f.Var(&n.upload, "upload-rate", "send to peers at most so fast, like 20MB/s, log entries first; 0 is no limit (default 0)")
	f.Var(&n.download, "download-rate", "receive from peers at most so fast, like 20MB/s, log entries first; 0 is no limit (default 0)")
	f.StringVar(&n.logLevel, "log-level", "info", "log debug, info, warn or error, and what is graver")
	f.StringVar(&n.logFormat, "log-format", "text", "log as text or json, on standard error")
}

// complete merges the configuration file in, fills in defaults and checks what
// the flags' types do not.
func (n *node) complete(cmd *cobra.Command) error {
	if n.config != "" {
		if err := applyConfig(cmd.Flags(), n.config); err != nil {
			return err
		}
	}
	o := &n.peer
	if o.Data == "" {
		return usagef("--data is missing: which directory is the node's?")
	}
	if n.logFormat != "text" && n.logFormat != "json" {
		return usagef("--log-format %q: want text or json", n.logFormat)
	}
	if o.Role == gossip.Manager && o.KeepSnapshots < 1 {
		return usagef("--keep-snapshots %d: a manager keeps at least one", o.KeepSnapshots)
	}
	if o.Name == "" && o.TLS.Cert == "" {
		name, err := defaultName(o.Data)
		if err != nil {
			return err
		}
		o.Name = name
	}
	used := map[string]string{}
	for _, name := range []string{"gossip-addr", "swarm-addr", "peer-addr", "http-addr", "resp-addr"} {
		addr := cmd.Flags().Lookup(name).Value.String()
		if name == "resp-addr" && addr == "" {
			continue
		}
		port, err := checkAddr(addr)
		if err != nil {
			return usagef("--%s %q: %w", name, addr, err)
		}
		if other := used[addr]; other != "" && port != 0 {
			return usagef("--%s and --%s are both %s: give each its own port", other, name, addr)
		}
		used[addr] = name
	}
	for _, addr := range o.Join {
		if port, err := checkAddr(addr); err != nil || port == 0 || strings.HasPrefix(addr, ":") {
			return usagef("--join %q: want the gossip address of a member, HOST:PORT", addr)
		}
	}
	o.UploadRate, o.DownloadRate = int64(n.upload), int64(n.download)
	o.EgressRate, o.MintRate, o.ScrubRate = int64(n.egress), int64(n.mint), int64(n.scrub)
	o.DiskBudget, o.SegmentBytes = int64(n.budget), int64(n.segment)
	var err error
	if o.VerifyStore, err = lmdbstore.ParseVerify(n.verifyStore); err != nil {
		return usagef("--verify-store: %w", err)
	}
	n.clients.complete(o)
	return nil
}

// defaultName names a node after its machine and its data directory, because
// one machine may run several.
func defaultName(data string) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", usagef("the machine has no name (%w): give --name", err)
	}
	dir, err := filepath.Abs(data)
	if err != nil {
		return "", err
	}
	return host + "-" + filepath.Base(dir), nil
}

// checkAddr checks the form of host:port.
func checkAddr(addr string) (port uint64, err error) {
	_, p, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.ParseUint(p, 10, 16)
	}
	if err != nil {
		return 0, fmt.Errorf("want HOST:PORT, the port from 0 to 65535")
	}
	return port, nil
}

// logger returns what the node logs to.
func (n *node) logger(cmd *cobra.Command) (*slog.Logger, *term.Footer, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(n.logLevel)); err != nil {
		return nil, nil, usagef("--log-level %q: want debug, info, warn or error", n.logLevel)
	}
	log, footer := newLogger(cmd.ErrOrStderr(), level, n.logFormat == "json")
	return log, footer, nil
}

// run runs the node until a signal asks it to leave or it can not go on.
func (n *node) run(cmd *cobra.Command) error {
	log, footer, err := n.logger(cmd)
	if err != nil {
		return err
	}
	n.peer.Logger = log
	limitMemory()

	ctx := cmd.Context()
	p, err := peer.Start(ctx, n.peer)
	if wrong := (*peer.OptionError)(nil); errors.As(err, &wrong) {
		return &usageError{err}
	}
	if err != nil {
		return err
	}
	if err := keepCrash(n.peer.Data, log); err != nil { // now that the directory is ours
		log.Warn("a crash of this process will be reported on standard error only", "error", err)
	}
	addrs := p.Addrs()
	log.Info("listening", "http", addrs.HTTP, "gossip", addrs.Gossip, "resp", addrs.RESP, "peer", addrs.Peer, "swarm", addrs.Swarm)
	watch := &fetchWatch{progress: p.Progress, log: log, footer: footer, screen: cmd.ErrOrStderr()}
	watching, unwatch := context.WithCancel(ctx)
	var watched sync.WaitGroup
	watched.Go(func() { watch.run(watching) })
	defer watched.Wait()
	defer unwatch()
	select {
	case <-ctx.Done():
		log.Info("leaving the fleet; a second signal stops at once")
	case <-p.Done():
	}
	leave, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	closed := p.Close(leave)
	if err := p.Err(); err != nil {
		return err
	}
	if closed == nil {
		log.Info("stopped")
	}
	return closed
}

// memoryLimit is of the Go heap, in bytes: with what clients may fill (--client-memory)
// and the garbage of it, an attack takes less than 64 MiB more than a node at rest has.
const memoryLimit = 72 << 20

// limitMemory keeps the Go heap small beside LMDB's page cache, which is what
// the machine's memory is for. What lives on it is a few MiB, so there may be
// twice as much garbage: with half as much, a tenth of the processor time of a
// rebuild went into collecting it. The limit makes the garbage less when clients
// fill their share. GOMEMLIMIT and GOGC in the environment win.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}
