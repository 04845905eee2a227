package main

import (
	"fmt"
	"io/fs"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/qs-peer/qs-peer/internal/peer"
)

// clientLimits are the flags that bound what clients take of a node.
type clientLimits struct {
	memory byteSize
	mode   fileMode
}

func (c *clientLimits) flags(f *pflag.FlagSet, o *peer.ClientLimits) {
	c.memory, c.mode = peer.DefaultClientMemory, fileMode(peer.DefaultRESPUnixMode)
	f.Var(&c.mode, "resp-unix-mode", "`permissions` of the Unix socket: whoever may write to it has every right")
	f.IntVar(&o.Conns, "client-conns", peer.DefaultClientConns, "serve so many connections at once over HTTP, and so many over RESP")
	f.IntVar(&o.ConnsPerIdentity, "client-conns-each", peer.DefaultClientConnsPerIdentity, "of these, so many to one certificate's identity")
	f.IntVar(&o.Rate, "client-rate", peer.DefaultClientRate, "serve so many requests a second to one identity; 0 is no limit")
	f.Var(&c.memory, "client-memory", "hold so many bytes of all clients' requests and answers, of one identity three quarters")
}

func (c *clientLimits) complete(o *peer.Options) {
	o.RESPUnixMode, o.Clients.Memory = fs.FileMode(c.mode), int64(c.memory)
	if o.Clients.Rate == 0 {
		o.Clients.Rate = peer.NoLimit
	}
}

// fileMode is a flag of a file's permissions, in octal.
type fileMode fs.FileMode

func (m *fileMode) String() string { return fmt.Sprintf("%04o", uint32(*m)) }

func (m *fileMode) Type() string { return "mode" }

func (m *fileMode) Set(s string) error {
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil || v == 0 || v > 0o777 {
		return fmt.Errorf("%q: want permissions in octal, like 0660", s)
	}
	*m = fileMode(v)
	return nil
}
