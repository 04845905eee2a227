package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

// answerTimeout is how long a node may be silent by default.
const answerTimeout = 30 * time.Second

// target is the node that a command talks to.
type target struct {
	addr    string
	timeout time.Duration
}

// flags adds --addr and --timeout to cmd.
func (t *target) flags(cmd *cobra.Command, timeout time.Duration) {
	f := cmd.Flags()
	f.StringVar(&t.addr, "addr", "127.0.0.1:7948", "HTTP `address` of the node, host:port or http://host:port")
	f.DurationVar(&t.timeout, "timeout", timeout, "longest silence of the node before giving up; 0 waits for ever")
}

func (t *target) client() (*client.Client, error) {
	if t.timeout < 0 {
		return nil, usagef("--timeout %v: want 0 or more", t.timeout)
	}
	c, err := client.New(t.addr, t.timeout)
	if err != nil {
		return nil, &usageError{err}
	}
	return c, nil
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
