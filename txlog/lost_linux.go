package txlog

import "syscall"

// lostErrnos are what opening and reading fail with when the disk lost what is read: EUCLEAN and
// EBADMSG are what file systems say of a checksum that does not match.
var lostErrnos = []syscall.Errno{syscall.EIO, syscall.EUCLEAN, syscall.EBADMSG}
