package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// Exit codes.
const (
	exitDone = iota
	exitFailed
	exitUsage
)

// usageError is a mistake in how qs-peer was called or configured.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// run is main without the exit.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks; the second, which is not caught any more, ends the
	// process at once.
	context.AfterFunc(ctx, stop)

	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		fmt.Fprintf(os.Stderr, "qs-peer: %s (see '%s --help')\n", line, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(os.Stderr, "qs-peer: %s\n", line)
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "qs-peer",
		Short: "Replicate read-mostly key-value data to a fleet, peer to peer",
		Long: `qs-peer keeps a copy of one key-value dataset on every machine of a fleet.
Managers own the data in a hash-chained log and publish snapshots; workers fetch
the snapshots from each other, catch up from the log, and serve reads.

To see it work: qs-peer demo`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return usagef("unknown command %q%s", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(cmd.ErrOrStderr())
			cmd.Help()
			return usagef("say which command to run")
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		var bad *pflag.InvalidValueError
		if errors.As(err, &bad) {
			return usagef("--%s: %w", bad.GetFlag().Name, badValue(bad.GetFlag(), bad.GetValue(), bad.Unwrap()))
		}
		return &usageError{err}
	})
	root.PersistentFlags().SortFlags = false

	const nodes, data, operate = "nodes", "data", "operate"
	root.AddGroup(
		&cobra.Group{ID: nodes, Title: "Run nodes:"},
		&cobra.Group{ID: data, Title: "Read and write:"},
		&cobra.Group{ID: operate, Title: "Operate:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			c.Flags().SortFlags = false
			c.DisableFlagsInUseLine = true
			root.AddCommand(c)
		}
	}
	add(nodes, newDemo(), newManager(), newWorker())
	add(data, newGet(), newPut(), newDel(), newScan(), newImport(), newExport())
	add(operate, newStatus(), newSnapshot(), newScrub(), newVerify(), newRestore(), newCA(), newBench(), newVersion())
	return root
}

// wantArgs accepts from least to most arguments; what names them. most < 0
// means any number.
func wantArgs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		if what == "" {
			return usagef("%s takes no arguments, got %q", cmd.Name(), args[0])
		}
		return usagef("%s takes %s, got %s", cmd.Name(), what, term.Plural(len(args), "argument"))
	}
}

// badValue says what a flag wants where the library's words are Go's.
func badValue(flag *pflag.Flag, value string, err error) error {
	switch flag.Value.Type() {
	case "bool":
		return fmt.Errorf("%q: want true or false", value)
	case "int":
		return fmt.Errorf("%q: want a whole number", value)
	case "duration":
		return fmt.Errorf("%q: want a duration with a unit, like 30s, 10m or 1h30m", value)
	}
	return err
}

// sayLastWords writes to w what a failed node said last, the lines of err after
// the first, as they are, and returns the first.
func sayLastWords(w io.Writer, err error) error {
	message, words, found := strings.Cut(err.Error(), "\n")
	if !found {
		return err
	}
	fmt.Fprintln(w, words)
	return errors.New(message)
}
