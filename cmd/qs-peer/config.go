package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// applyConfig sets the flags that the YAML file at path names, except those
// that were given on the command line. Its names are the flags' names, so
// there is one list of settings and one place that checks values.
func applyConfig(flags *pflag.FlagSet, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return usagef("--config: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return usagef("--config: %w", err)
	}
	if len(text) > maxConfig {
		return usagef("%s: longer than %d bytes", path, maxConfig)
	}

	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // empty, or only comments
	} else if err != nil {
		return usagef("%s: %w", path, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return usagef("%s: want one YAML document, got another after it", path)
	}
	settings := doc.Content[0]
	if settings.Kind == yaml.ScalarNode && settings.Tag == "!!null" {
		return nil
	}
	if settings.Kind != yaml.MappingNode {
		return usagef("%s:%d: want settings, one \"name: value\" a line", path, settings.Line)
	}
	seen := map[string]int{}
	for i := 0; i < len(settings.Content); i += 2 {
		name, value := settings.Content[i], settings.Content[i+1]
		fail := func(format string, args ...any) error {
			return usagef("%s:%d: %w", path, name.Line, fmt.Errorf(format, args...))
		}
		flag := flags.Lookup(name.Value)
		switch {
		case flag == nil || name.Kind != yaml.ScalarNode || name.Value == "help":
			return fail("unknown setting %q; the settings are the flags of this command, without dashes in front", name.Value)
		case name.Value == "config":
			return fail("a configuration file can not name another")
		case seen[name.Value] > 0:
			return fail("%s is set already in line %d", name.Value, seen[name.Value])
		}
		seen[name.Value] = name.Line
		if flag.Changed {
			continue // the command line wins
		}
		if err := setFlag(flag, value); err != nil {
			return fail("%s: %w", name.Value, err)
		}
	}
	return nil
}

// setFlag sets a flag to a YAML value: a scalar, or for a list flag a list.
func setFlag(flag *pflag.Flag, value *yaml.Node) error {
	list, isList := flag.Value.(pflag.SliceValue)
	switch {
	case value.Kind == yaml.SequenceNode && isList:
		items := make([]string, len(value.Content))
		for i, item := range value.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				return fmt.Errorf("item %d is not a single value", i+1)
			}
			items[i] = item.Value
		}
		return list.Replace(items)
	case value.Kind != yaml.ScalarNode && isList:
		return errors.New("want a value or a list of values")
	case value.Kind != yaml.ScalarNode:
		return errors.New("want a single value")
	case value.Tag == "!!null":
		return errors.New("has no value; leave the line out, or write \"\" for an empty one")
	}
	if err := flag.Value.Set(value.Value); err != nil {
		return badValue(flag, value.Value, err)
	}
	return nil
}
