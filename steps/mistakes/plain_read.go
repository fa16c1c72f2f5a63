//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// unix(7), SCM_RIGHTS: read(2) takes the payload out of the queue, and the kernel closes the
// descriptors that came with it. Unlike recvmsg(2) with its MSG_CTRUNC, read cannot even say so.

// Wrong: read(2), which is what Read of a net.Conn calls.
func plainReadWrong(s *sockets) (string, error) {
	return giveServer(s, func(c *net.UnixConn) (message, error) {
		payload := make([]byte, 64)
		n, err := c.Read(payload)
		return message{payload: string(payload[:n])}, err
	})
}

// Right: recvmsg(2) with a control buffer, even where no descriptor is expected.
func plainReadRight(s *sockets) (string, error) {
	return giveServer(s, func(c *net.UnixConn) (message, error) {
		return receive(c, maxFDs, unix.MSG_CMSG_CLOEXEC)
	})
}

// giveServer sends the server's end of a connection and closes the sender's descriptor of it, so
// that the connection lives as long as the received one. Then it reads as the client.
func giveServer(s *sockets, receiveFrom func(*net.UnixConn) (message, error)) (string, error) {
	err := errors.Join(sendConn(s.sender, s.server, "connection"), s.server.Close())
	if err != nil {
		return "", err
	}
	m, err := receiveFrom(s.receiver)
	defer closeFDs(m.fds...)
	return fmt.Sprintf("payload %q and %d of 1 descriptors; the client reads %s", m.payload, len(m.fds), tryRead(s.client)), err
}
