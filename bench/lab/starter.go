package lab

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var errClosed = errors.New("the network is closed")

// starter starts processes inside namespaces. All have the same thread for a
// parent, which lives as long as the starter: a process asks the kernel to be
// killed when its parent ends, and the kernel takes the thread for the parent.
type starter struct {
	thread int // its id
	jobs   chan startJob
	stop   chan struct{}
	done   chan struct{}
}

type startJob struct {
	ns     netns.NsHandle
	cmd    *exec.Cmd
	result chan<- error
}

func newStarter() (*starter, error) {
	s := &starter{jobs: make(chan startJob), stop: make(chan struct{}), done: make(chan struct{})}
	home, err := netns.Get()
	if err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	go onOtherThread(func() {
		defer close(s.done)
		defer home.Close()
		// Never unlocked: the thread, and what it started, ends with the goroutine.
		s.thread = unix.Gettid()
		close(ready)
		for {
			select {
			case j := <-s.jobs:
				j.result <- s.run(j, home)
			case <-s.stop:
				return
			}
		}
	})
	<-ready
	return s, nil
}

// onOtherThread runs f locked to a thread that ends with it: to any but the first of the
// process, which Go never ends.
func onOtherThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	locked := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(locked)
		f()
	}()
	<-locked // until then nobody else gets the first
	runtime.UnlockOSThread()
}

func (s *starter) run(j startJob, home netns.NsHandle) error {
	if err := netns.Set(j.ns); err != nil {
		return err
	}
	if j.cmd.SysProcAttr == nil {
		j.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	j.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := j.cmd.Start()
	return errors.Join(err, netns.Set(home))
}

// start starts cmd in ns.
func (s *starter) start(ns netns.NsHandle, cmd *exec.Cmd) error {
	result := make(chan error, 1)
	select {
	case s.jobs <- startJob{ns, cmd, result}:
		return <-result
	case <-s.done:
		return errClosed
	}
}

// close ends the starter, and kills what it started. It is called once.
func (s *starter) close() {
	close(s.stop)
	<-s.done
}
