package peer

import (
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
)

func TestOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Options)
		want   []string // parts of the error; none: valid
	}{
		{"defaults", func(*Options) {}, nil},
		{"localhost", func(o *Options) { o.HTTPAddr = "localhost:0" }, nil},
		{"IPv6 loopback", func(o *Options) { o.HTTPAddr = "[::1]:0" }, nil},
		{"insecure", func(o *Options) { o.HTTPAddr = ":0"; o.Insecure = true }, nil},
		{"no data directory", func(o *Options) { o.Data = "" }, []string{"--data"}},
		{"no name", func(o *Options) { o.Name = "" }, []string{"--name"}},
		{"unknown role", func(o *Options) { o.Role = "king" }, []string{`"king"`, `"manager"`}},
		{"worker with init", func(o *Options) { o.Role = gossip.Worker; o.Init = true }, []string{"--init"}},
		{"everywhere", func(o *Options) { o.SwarmAddr = ":6881" }, []string{"--swarm-addr", ":6881", "TLS", "--insecure"}},
		{"unspecified", func(o *Options) { o.GossipAddr = "0.0.0.0:1" }, []string{"--gossip-addr", "0.0.0.0:1"}},
		{"another address", func(o *Options) { o.RESPAddr = "192.0.2.1:1" }, []string{"--resp-addr", "192.0.2.1:1"}},
		{"IPv6 unspecified", func(o *Options) { o.PeerAddr = "[::]:1" }, []string{"--peer-addr"}},
		{"no port", func(o *Options) { o.HTTPAddr = "127.0.0.1" }, []string{"--http-addr", "host:port"}},
		{"bad join", func(o *Options) { o.Join = []string{"manager-1"} }, []string{"--join", "manager-1"}},
		{"keeps nothing", func(o *Options) { o.KeepSnapshots = -1 }, []string{"--keep-snapshots"}},
		{"negative rate", func(o *Options) { o.MintRate = -1 }, []string{"rate"}},
		{"egress within upload", func(o *Options) { o.UploadRate, o.EgressRate = 2, 2 }, nil},
		{"egress beyond upload", func(o *Options) { o.UploadRate, o.EgressRate = 2, 3 }, []string{"--egress-rate", "--upload-rate"}},
		{"worker with egress", func(o *Options) { o.Role = gossip.Worker; o.EgressRate = 1 }, []string{"--egress-rate", "--upload-rate"}},
		{"no connections", func(o *Options) { o.Clients.Conns = -1 }, []string{"--client-conns", "-1"}},
		{"no connections for one", func(o *Options) { o.Clients.ConnsPerIdentity = -1 }, []string{"--client-conns-each"}},
		{"negative client rate", func(o *Options) { o.Clients.Rate = -2 }, []string{"--client-rate"}},
		{"little memory", func(o *Options) { o.Clients.Memory = 1 << 20 }, []string{"--client-memory", "33554432"}},
		{"no permissions at all", func(o *Options) { o.RESPUnixMode = 0o4660 }, []string{"--resp-unix-mode", "0660"}},
		{"negative interval", func(o *Options) { o.SnapshotEvery = -1 }, []string{"--snapshot-every"}},
		{"unknown source", func(o *Options) { o.Sources = []string{"managers", "tracker"} }, []string{"--sources", "other-colos"}},
		{"source twice", func(o *Options) { o.Sources = []string{"managers", "managers"} }, []string{"--sources", "once"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Data: "d", Name: "n", Role: gossip.Manager}
			tt.change(&o)
			o = o.withDefaults()
			err := o.validate(t.Context())
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, tt.want...)
		})
	}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}
