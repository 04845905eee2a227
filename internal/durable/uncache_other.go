//go:build !linux

package durable

// Uncache does nothing here.
func Uncache(File) {}
