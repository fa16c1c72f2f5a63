//go:build linux

package main

// What the mistakes have in common: sockets, one sendmsg, one recvmsg, another process. send and
// receive check nothing, so that mistakes show: do not copy them into a program.

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxFDs = 253 // the most that one message can carry: SCM_MAX_FD, unix(7)
	stdin  = 0   // a descriptor to send: any would do

	nothingYet = "nothing yet (EAGAIN)"
)

// sockets are what a mistake is made with: two connections, both inside this process.
type sockets struct {
	sender, receiver *net.UnixConn // SOCK_SEQPACKET, for descriptors
	client, server   *net.UnixConn // SOCK_STREAM, something worth sending
}

// withSockets runs way with new sockets, and closes them.
func withSockets(way func(s *sockets) (string, error)) (string, error) {
	sender, receiver, packetErr := newPair(unix.SOCK_SEQPACKET)
	client, server, streamErr := newPair(unix.SOCK_STREAM)
	if err := errors.Join(packetErr, streamErr); err != nil {
		return "", err
	}
	for _, c := range []*net.UnixConn{sender, receiver, client, server} {
		defer c.Close() // maybe for the second time; nothing in it is still wanted
	}
	return way(&sockets{sender, receiver, client, server})
}

func newPair(socketType int) (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, socketType|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	a, errA := newConn(fds[0])
	b, errB := newConn(fds[1])
	return a, b, errors.Join(errA, errB)
}

// newConn makes a net.Conn of fd, which belongs to it from now on.
func newConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close() // FileConn has made a duplicate
	c, err := net.FileConn(file)
	conn, _ := c.(*net.UnixConn) // or nil, with the error
	return conn, err
}

// borrow lends f the number of c's descriptor, which stays open meanwhile.
func borrow(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) { failure = f(int(fd)) })
	return errors.Join(err, failure)
}

// send calls sendmsg(2) once.
func send(c *net.UnixConn, payload string, fds ...int) error {
	return borrow(c, func(socket int) error {
		err := unix.Sendmsg(socket, []byte(payload), unix.UnixRights(fds...), nil, 0)
		return os.NewSyscallError("sendmsg", err)
	})
}

// sendConn sends the descriptor of connection, and payload.
func sendConn(c *net.UnixConn, connection syscall.Conn, payload string) error {
	return borrow(connection, func(fd int) error { return send(c, payload, fd) })
}

// message is what one recvmsg(2) delivered.
type message struct {
	payload string
	fds     []int // open in this process from now on
	flags   int
}

func (m message) String() string { return fmt.Sprintf("%q+%d", m.payload, len(m.fds)) }

func (m message) truncated() bool { return m.flags&unix.MSG_CTRUNC != 0 }

// receive calls recvmsg(2) once, with room for that many descriptors, without waiting: a unix
// socket delivers at once, so EAGAIN means that nothing was delivered.
func receive(c syscall.Conn, room, flags int) (m message, err error) {
	payload, control := make([]byte, 64), make([]byte, unix.CmsgSpace(4*room))
	err = borrow(c, func(socket int) error {
		n, controlLen, gotFlags, _, err := unix.Recvmsg(socket, payload, control, flags|unix.MSG_DONTWAIT)
		if err != nil {
			return os.NewSyscallError("recvmsg", err)
		}
		m.payload, m.flags = string(payload[:n]), gotFlags
		headers, err := unix.ParseSocketControlMessage(control[:controlLen])
		for _, header := range headers {
			fds, rightsErr := unix.ParseUnixRights(&header)
			m.fds, err = append(m.fds, fds...), errors.Join(err, rightsErr)
		}
		return err
	})
	return m, err
}

// receiveOne receives a message that must carry one descriptor.
func receiveOne(c syscall.Conn, flags int) (payload string, fd int, err error) {
	m, err := receive(c, maxFDs, flags)
	if err == nil && len(m.fds) == 1 {
		return m.payload, m.fds[0], nil
	}
	closeFDs(m.fds...)
	return "", -1, errors.Join(err, fmt.Errorf("recvmsg: %d descriptors, want 1", len(m.fds)))
}

// pass sends the descriptor of c and payload, and receives them.
func (s *sockets) pass(c syscall.Conn, payload string, flags int) (received string, fd int, err error) {
	if err := sendConn(s.sender, c, payload); err != nil {
		return "", -1, err
	}
	return receiveOne(s.receiver, flags)
}

// receiveAll describes all messages in the queue, and closes their descriptors.
func receiveAll(c *net.UnixConn) string {
	var all []message
	for {
		m, err := receive(c, maxFDs, unix.MSG_CMSG_CLOEXEC)
		closeFDs(m.fds...)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return fmt.Sprint(all)
		case err != nil:
			return err.Error()
		}
		all = append(all, m)
	}
}

// tryRead describes the result of one read(2), which does not wait as long as O_NONBLOCK is on.
func tryRead(c *net.UnixConn) string {
	n := 0
	err := borrow(c, func(fd int) (err error) {
		n, err = unix.Read(fd, make([]byte, 8))
		return err
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nothingYet
	case err == nil && n == 0:
		return "end-of-file"
	}
	return fmt.Sprintf("%d bytes, error %v", n, err)
}

// closeFDs ignores errors: nothing is written to these descriptors that could still be lost.
func closeFDs(fds ...int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // see above
	}
}

// runChild runs this program as another process, waits until it exits, and returns its output.
// files become its descriptors 3, 4, ...
func runChild(name, arg string, files ...*os.File) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	child := exec.Command(self, name, arg)
	child.ExtraFiles = files
	out, err := child.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return string(out), err
}
