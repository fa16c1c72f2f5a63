//go:build linux

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Descriptors out of another process: pidfd_open(2), pidfd_getfd(2). To copy: this file with
// denied.go, and golang.org/x/sys/unix.

// target is a process whose descriptors are wanted. Its owner closes it.
type target struct {
	pidfd int // means this process for good
	pid   int // meant it when the pidfd was made; may be given to another once it has ended
}

func (t target) Close() error { return os.NewSyscallError("close", unix.Close(t.pidfd)) }

// fetch duplicates a descriptor of the target into this process, close-on-exec, as dup(2) would
// within one. It is the caller's to close. The target is not asked, and does not notice. Why it
// is not allowed, if it is not, stands in the error (pidfd_getfd(2)).
func (t target) fetch(number int) (int, error) {
	fd, err := -1, error(unix.EBADF)
	if number == int(int32(number)) { // the kernel would look at the lower half
		fd, err = unix.PidfdGetfd(t.pidfd, number, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd of pid %d, descriptor %d: %w", t.pid, number, t.explain(err))
	}
	return fd, nil
}

// polled is what poll(2) says of a descriptor at this moment.
func polled(fd int, events int16) (revents int16) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return 0 // interrupted: as if nothing had happened yet
	}
	return fds[0].Revents
}
