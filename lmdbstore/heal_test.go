package lmdbstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/txlog"
)

// childCrowded has more readers than ever before when the disk is full.
func childCrowded(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		fmt.Println("skip:", err)
		return nil
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, err := Open(filepath.Join(dir, "store"), Options{})
	if err != nil {
		return err
	}
	h := newHistory()
	if err := s.Apply([]txlog.Entry{h.begin(), h.entry(put("a", "1"))}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 8<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("the disk is not full: %w", err)
	}
	e := s.current.Load().env
	var readers []*readTxn
	for range s.options.MaxReaders {
		t, err := e.begin(nil)
		if err != nil {
			return err
		}
		readers = append(readers, t)
	}
	for _, t := range readers {
		e.end(t)
	}
	fmt.Println(len(readers), "readers")
	if err := s.Close(); err != nil {
		return err
	}

	// Nor does an environment come to be that has no room for them.
	_, err = Open(filepath.Join(dir, "other"), Options{})
	fmt.Println(errors.Is(err, unix.ENOSPC), err)
	return nil
}

// TestCrowdedOnFullDisk: LMDB's table of readers has its room before the disk
// fills up; as a hole in a mapped file it would kill the process (SIGBUS).
func TestCrowdedOnFullDisk(t *testing.T) {
	c := start(t, "crowded", t.TempDir(), mounting())
	first := c.line(t)
	if strings.HasPrefix(first, "skip:") {
		t.Skip(first)
	}
	if first != "512 readers" {
		t.Error(first)
	}
	if got := c.line(t); !strings.HasPrefix(got, "true ") {
		t.Errorf("a store was made without room for it: %s", got)
	}
}

// childDescriptors remaps an environment when there are no file descriptors.
func childDescriptors(dir string) error {
	s, err := Open(dir, Options{MapSize: minMapBytes})
	if err != nil {
		return err
	}
	h := newHistory()
	if err := s.Apply([]txlog.Entry{h.begin(), h.entry(put("a", "1"))}); err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	few := limit
	few.Cur = 1
	for i := range 3 {
		big := []txlog.Entry{h.entry(put("big", strings.Repeat("b", min(4+12*i, 16)*minMapBytes)), put("bigger", strings.Repeat("b", 8*i*minMapBytes)))}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
			return err
		}
		applyErr := s.Apply(big)
		_, _, getErr := s.Get(nil, []byte("a"))
		_, scrubErr := s.Scrub(context.Background(), ScrubOptions{Rate: -1})
		fmt.Println(errors.Is(applyErr, unix.EMFILE), errors.Is(getErr, unix.EMFILE), errors.Is(scrubErr, unix.EMFILE), applyErr, getErr, scrubErr)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		var value []byte
		switch i { // a write mends it as well as a read and a scrub
		case 0:
			applyErr = s.Apply(big)
			value, _, getErr = s.Get(nil, []byte("a"))
		case 1:
			if _, err := s.Scrub(context.Background(), ScrubOptions{Rate: -1}); err != nil {
				return err
			}
			fallthrough
		default:
			value, _, getErr = s.Get(nil, []byte("a"))
			applyErr = nil
			if s.State().Pos != big[0].Pos() { // it may have failed to grow afterwards only
				applyErr = s.Apply(big)
			}
		}
		fmt.Println(applyErr, getErr, string(value))
	}
	return s.Close()
}

// TestRemapWithoutDescriptors: an environment that could not be opened again
// when its map had to grow is, once it can.
func TestRemapWithoutDescriptors(t *testing.T) {
	c := start(t, "descriptors", t.TempDir(), nil)
	for range 3 {
		if got := c.line(t); !strings.HasPrefix(got, "true true true ") {
			t.Errorf("without descriptors: %s", got)
		}
		if got := c.line(t); got != "<nil> <nil> 1" {
			t.Errorf("with descriptors again: %s", got)
		}
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}
