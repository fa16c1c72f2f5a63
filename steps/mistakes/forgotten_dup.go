//go:build linux

package main

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// close(2), dup(2): a connection ends when the last descriptor of its open file description is
// closed, in whatever process. File() makes one more, and closing the connection leaves that one
// open: the peer never sees end-of-file. TCP is no different.

// Wrong: File(), to have a number to send, and no Close of that file.
func forgottenDupWrong(s *sockets) (string, error) {
	file, err := s.server.File()
	if err != nil {
		return "", err
	}
	result, err := passAndClose(s, file)
	err = errors.Join(err, file.Close())
	return fmt.Sprintf("%s; with the duplicate closed too: %s", result, tryRead(s.client)), err
}

// Right: SyscallConn().Control() lends the number that is there already (see borrow).
func forgottenDupRight(s *sockets) (string, error) { return passAndClose(s, s.server) }

// passAndClose sends the number of c, which is the server's end of a connection, and closes that
// end in its receiver and in its sender.
func passAndClose(s *sockets, c syscall.Conn) (string, error) {
	_, fd, err := s.pass(c, "connection", unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return "", err
	}
	closeFDs(fd)
	err = s.server.Close()
	return "closed by both processes, the client reads " + tryRead(s.client), err
}
