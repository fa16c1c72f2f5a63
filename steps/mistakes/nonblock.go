//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// fcntl(2), F_SETFL: O_NONBLOCK belongs to the open file description, so all processes that have
// the connection share it. File().Fd() clears it, for a caller who may want to block. From then
// on a read blocks a thread in every one of them, and no deadline ends it. exec.Cmd.ExtraFiles
// calls Fd() as well (golang.org/issue/29277).

// Wrong: another process calls File().Fd(), just to see the number, and exits.
func nonblockWrong(s *sockets) (string, error) {
	return shareServer(s, "File().Fd()", 100*time.Millisecond)
}

// Right: it calls SyscallConn().Control().
func nonblockRight(s *sockets) (string, error) {
	return shareServer(s, "SyscallConn().Control()", 30*time.Second)
}

// nonblockChild is the other process. It receives the connection from descriptor 3.
func nonblockChild(way string) (string, error) {
	_, fd, err := receiveOne(os.NewFile(3, "receiver"), unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return "", err
	}
	server, err := newConn(fd)
	if err != nil {
		return "", err
	}
	if way == "File().Fd()" {
		file, err := server.File()
		if err == nil {
			file.Fd() //nolint:forbidigo // the mistake that this file is about
		}
		return way, err
	}
	return way, borrow(server, func(int) error { return nil })
}

// shareServer lets the child have the server's end of a connection, and reads from it here when
// the child has exited. Should the read go on beyond its deadline, the client ends it by closing.
func shareServer(s *sockets, way string, clientCloses time.Duration) (string, error) {
	receiver, err := s.receiver.File() // ExtraFiles makes it block: no harm, nobody reads from it here
	if err := errors.Join(err, sendConn(s.sender, s.server, "connection")); err != nil {
		return "", err
	}
	defer receiver.Close() // nothing was written to it
	called, err := runChild("child-nonblock", way, receiver)
	if err != nil {
		return "", err
	}
	raw, err := s.server.SyscallConn()
	if err != nil {
		return "", err
	}
	var setupErr error
	begin, flags, result := time.Now(), 0, ""
	err = raw.Read(func(fd uintptr) bool { // s.server.Read, but the deadline passes just before its read(2)
		flags, setupErr = unix.FcntlInt(fd, unix.F_GETFL, 0)
		setupErr = errors.Join(setupErr, s.server.SetReadDeadline(begin))
		defer time.AfterFunc(clientCloses, func() { s.client.Close() }).Stop()
		result = tryRead(s.server)
		return result != nothingYet // false: wait in Go's poller, until the deadline
	})
	if err != nil {
		result = fmt.Sprint(errors.Unwrap(err))
	}
	return fmt.Sprintf("a child has called %s: O_NONBLOCK is %t here; a read past its deadline ends after %v: %s",
		called, flags&unix.O_NONBLOCK != 0, time.Since(begin).Round(time.Millisecond), result), setupErr
}
