package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// answerTimeout is how long a node may be silent by default.
const answerTimeout = 30 * time.Second

// target is the node that a command talks to.
type target struct {
	addr    string
	tls     trust.Files
	timeout time.Duration
}

// flags adds --addr, --timeout and those of TLS to cmd.
func (t *target) flags(cmd *cobra.Command, timeout time.Duration) {
	f := cmd.Flags()
	f.StringVar(&t.addr, "addr", "127.0.0.1:7948", "HTTP `address` of the node, host:port or a URL; https if there is a certificate")
	usage := "longest silence of the node before giving up; 0 waits for ever"
	if timeout == 0 {
		usage += " (default 0)"
	}
	f.DurationVar(&t.timeout, "timeout", timeout, usage)
	f.StringVar(&t.tls.CA, "tls-ca", "", "`file` of the authorities' certificates that the node's is checked against (default $QS_TLS_CA)")
	f.StringVar(&t.tls.Cert, "tls-cert", "", "`file` of the certificate that says who asks (default $QS_TLS_CERT)")
	f.StringVar(&t.tls.Key, "tls-key", "", "`file` of the certificate's key (default $QS_TLS_KEY)")
}

func (t *target) client() (*client.Client, error) {
	if t.timeout < 0 {
		return nil, usagef("--timeout %v: want 0 or more", t.timeout)
	}
	files := trust.Files{
		CA:   cmp.Or(t.tls.CA, os.Getenv("QS_TLS_CA")),
		Cert: cmp.Or(t.tls.Cert, os.Getenv("QS_TLS_CERT")),
		Key:  cmp.Or(t.tls.Key, os.Getenv("QS_TLS_KEY")),
	}
	c, err := client.New(client.Options{Addr: t.addr, TLS: files, Silence: t.timeout})
	if wrong := (*client.UsageError)(nil); errors.As(err, &wrong) {
		return nil, &usageError{err}
	}
	return c, err
}

// codec is how keys and values are written on the command line and printed: as
// they are, or in base64.
type codec struct{ base64 bool }

func (c *codec) flags(cmd *cobra.Command, usage string) {
	cmd.Flags().BoolVar(&c.base64, "base64", false, usage+" (default false)")
}

// decode reads an argument that is called name.
func (c codec) decode(name, arg string) ([]byte, error) {
	if !c.base64 {
		return []byte(arg), nil
	}
	b, err := base64.StdEncoding.DecodeString(arg)
	if err != nil {
		return nil, usagef("%s %q is not standard base64: %w", name, arg, err)
	}
	return b, nil
}

// key reads an argument that is a key. The empty key has no place in a URL; all
// other limits are the node's to tell.
func (c codec) key(arg string) ([]byte, error) {
	key, err := c.decode("KEY", arg)
	if err == nil && len(key) == 0 {
		err = usagef("KEY is empty; a key is 1 to 511 bytes long")
	}
	return key, err
}

// printJSON prints v as one line of JSON.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
