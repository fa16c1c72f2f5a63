//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// getrlimit(2), RLIMIT_NOFILE: open, accept and dup fail with EMFILE when the process has no
// descriptor number left. recvmsg(2) succeeds, with as many descriptors as there are numbers; the
// kernel closes the others and sets MSG_CTRUNC.

// Wrong: check the error only.
func nofileLimitWrong(s *sockets) (string, error) {
	return receiveAtLimit(s, func(message) error { return nil })
}

// Right: treat MSG_CTRUNC as an error, and close what arrived. The sender still has all four.
func nofileLimitRight(s *sockets) (string, error) {
	return receiveAtLimit(s, func(m message) error {
		if m.truncated() {
			return errors.New("descriptors are missing")
		}
		return nil
	})
}

// receiveAtLimit receives four descriptors while this process can open only one more.
func receiveAtLimit(s *sockets, check func(message) error) (string, error) {
	if err := send(s.sender, "four", stdin, stdin, stdin, stdin); err != nil {
		return "", err
	}
	var before unix.Rlimit
	getErr := unix.Getrlimit(unix.RLIMIT_NOFILE, &before)
	lowest, dupErr := unix.FcntlInt(stdin, unix.F_DUPFD_CLOEXEC, 0) // every number below is in use
	err := errors.Join(os.NewSyscallError("getrlimit", getErr), os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", dupErr))
	if err != nil {
		return "", err
	}
	closeFDs(lowest)
	limit := unix.Rlimit{Cur: uint64(lowest) + 1, Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "", os.NewSyscallError("setrlimit", err)
	}

	m, err := receive(s.receiver, maxFDs, unix.MSG_CMSG_CLOEXEC)
	defer closeFDs(m.fds...)
	result := fmt.Sprintf("1 number left: recvmsg gets %d of 4 descriptors, MSG_CTRUNC %t, error %v; the check says: %v",
		len(m.fds), m.truncated(), err, check(m))
	return result, os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
}
