package lab

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotPermitted means that this process may not make network namespaces.
var ErrNotPermitted = errors.New("network namespaces need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")

// newNamespace returns a namespace that nobody else knows.
func newNamespace() (ns netns.NsHandle, err error) {
	err = onThread(func() (err error) {
		if ns, err = netns.New(); err != nil {
			return fmt.Errorf("make namespace: %w", err)
		}
		return nil
	})
	return ns, err
}

// within runs f on a thread that is in ns.
func within(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f, which may change its thread's namespace, and puts the thread
// back. A thread that can not be put back ends.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}
