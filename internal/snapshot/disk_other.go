//go:build !linux

package snapshot

import "github.com/qs-peer/qs-peer/internal/durable"

func freeSpace(string) (int64, bool) { return 0, false }

func startWriteback(durable.File, int64, int64) {}
