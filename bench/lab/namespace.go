package lab

import (
	"errors"
	"fmt"
	"os"
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
		for _, set := range settings {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+set.name, []byte(set.value), 0); err != nil {
				return fmt.Errorf("set up namespace: %w", errors.Join(err, ns.Close()))
			}
		}
		return nil
	})
	return ns, err
}

// Congestion and FramesAtOnce are how every host's TCP sends: the algorithm, and at
// least how many frames together if there are as many.
//
// Cubic is the kernel's own default. The machine's may be another: with bbr, which paces
// every connection by timers, a colo of 24 on two cores took 1.38 to 1.49 times
// the least time, with cubic 1.25 to 1.30.
const (
	Congestion   = "cubic"
	FramesAtOnce = 16
)

// settings are made in every namespace, so that a run does not depend on how the
// machine is configured.
var settings = []struct{ name, value string }{
	// A slow connection sends two frames at a time by default, and here one machine
	// does for all nodes, with a software bridge, what their network cards do.
	// Frames that are handled together are still counted and limited one by one.
	{"tcp_min_tso_segs", fmt.Sprint(FramesAtOnce)},
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
