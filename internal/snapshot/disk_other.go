//go:build !linux

package snapshot

import "github.com/qs-peer/qs-peer/internal/durable"

func startWriteback(durable.File, int64, int64) {}
