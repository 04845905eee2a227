//go:build !linux

package txlog

import "syscall"

// lostErrnos are what opening and reading fail with when the disk lost what is read.
var lostErrnos = []syscall.Errno{syscall.EIO, syscall.EBADMSG}
