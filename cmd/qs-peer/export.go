package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/durable"
)

func newExport() *cobra.Command {
	var t target
	var enc codec
	var prefix string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "export [FILE|-] [flags]",
		Short: "Read all pairs as JSON Lines",
		Long: `Export writes one pair a line, {"key":"…","value":"…"}, to FILE or standard output
("-", the default): in key order and from one state, so that the exports of two
nodes at one position are the same bytes. FILE appears, or is replaced, only
when the export is complete.`,
		Args: wantArgs(0, 1, "at most one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			r := client.Range{Base64: enc.base64}
			if prefix != "" {
				if r.Prefix, err = enc.decode("--prefix", prefix); err != nil {
					return err
				}
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var meter *term.Meter
			toFile := len(args) == 1 && args[0] != "-"
			// Progress between the lines of a terminal would spoil both.
			if !quiet && (toFile || !term.Is(cmd.OutOrStdout())) {
				meter = term.NewMeter(cmd.Context(), cmd.ErrOrStderr(), "export", 0)
			}
			begun := time.Now()
			var count countLines
			fetch := func(w io.Writer) error {
				body, err := c.Scan(cmd.Context(), r)
				if err != nil {
					return err
				}
				defer body.Close()
				count.w = w
				count.each = func() { meter.Set(count.bytes, "%s pairs, %s", term.Count(count.lines), term.Bytes(count.bytes)) }
				_, err = io.CopyBuffer(&count, struct{ io.Reader }{body}, make([]byte, 256<<10))
				if err == nil && count.bytes > 0 && count.last != '\n' {
					err = client.ErrCutOff
				}
				return err
			}
			if toFile {
				err = replaceFile(args[0], fetch)
			} else {
				err = fetch(cmd.OutOrStdout())
			}
			meter.Done()
			if err != nil {
				return fmt.Errorf("export: %w", withBase64Hint(err))
			}
			if toFile && !quiet {
				took := time.Since(begun)
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "exported %s, %s, in %s\n",
					term.Plural(count.lines, "pair"), term.Bytes(count.bytes), term.Duration(took))
			}
			return err
		},
	}
	t.flags(cmd, answerTimeout)
	enc.flags(cmd, "write keys and values, and read --prefix, as base64")
	f := cmd.Flags()
	f.StringVar(&prefix, "prefix", "", "only keys that begin so (default: all)")
	f.BoolVar(&quiet, "quiet", false, "show no progress and no summary (default false)")
	return cmd
}

// replaceFile gives path what write writes, or, after an error, leaves path as
// it was.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	buf := bufio.NewWriterSize(f, 256<<10)
	err = errors.Join(write(buf), buf.Flush(), f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return durable.Rename(durable.OS, f.Name(), path)
}

// countLines is a writer that counts what goes through it.
type countLines struct {
	w     io.Writer
	each  func() // called after each write
	lines uint64
	bytes int64
	last  byte
}

func (c *countLines) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if n > 0 {
		c.lines += uint64(bytes.Count(p[:n], []byte{'\n'}))
		c.bytes += int64(n)
		c.last = p[n-1]
		c.each()
	}
	return n, err
}
