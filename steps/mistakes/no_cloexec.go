//go:build linux

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// recvmsg(2), fcntl(2): close-on-exec belongs to the descriptor, not to the open file description,
// so the sender's setting does not travel. The received one has it only if MSG_CMSG_CLOEXEC says
// so. Setting it afterwards is too late for a child that another thread starts in between.

// Wrong: no flag, as the sender's descriptor is close-on-exec.
func noCloexecWrong(s *sockets) (string, error) { return receiveAndStartChild(s, 0) }

// Right: MSG_CMSG_CLOEXEC in every recvmsg.
func noCloexecRight(s *sockets) (string, error) {
	return receiveAndStartChild(s, unix.MSG_CMSG_CLOEXEC)
}

func receiveAndStartChild(s *sockets, flags int) (string, error) {
	_, fd, err := s.pass(s.server, "connection", flags)
	if err != nil {
		return "", err
	}
	defer closeFDs(fd)
	fdFlags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		return "", os.NewSyscallError("fcntl F_GETFD", err)
	}
	number := fmt.Sprint(fd)
	there, err := runChild("child-no-cloexec", number)
	return fmt.Sprintf("close-on-exec %t; descriptor %s here: %s; in a child process: %s",
		fdFlags&unix.FD_CLOEXEC != 0, number, fileOf(number), there), err
}

func noCloexecChild(number string) (string, error) { return fileOf(number), nil }

// fileOf says what is open under number, for example "socket:[4711]".
func fileOf(number string) string {
	file, err := os.Readlink("/proc/self/fd/" + number)
	if err != nil {
		return err.Error()
	}
	return file
}
