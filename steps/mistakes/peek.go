//go:build linux

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// recvmsg(2), MSG_PEEK: the message stays in the queue, and yet its descriptors are installed in
// the receiver, under new numbers, at every peek. Each of them has to be closed.

// Wrong: peek with the control buffer for receiving.
func peekWrong(s *sockets) (string, error) { return peekThreeTimes(s, maxFDs) }

// Right: peek without room for descriptors. They stay with the message.
func peekRight(s *sockets) (string, error) { return peekThreeTimes(s, 0) }

func peekThreeTimes(s *sockets, room int) (string, error) {
	if err := send(s.sender, "one", stdin); err != nil {
		return "", err
	}
	peeked := 0
	for range 3 {
		m, err := receive(s.receiver, room, unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC)
		defer closeFDs(m.fds...)
		if err != nil {
			return "", err
		}
		peeked += len(m.fds)
	}
	m, err := receive(s.receiver, maxFDs, unix.MSG_CMSG_CLOEXEC)
	defer closeFDs(m.fds...)
	return fmt.Sprintf("1 descriptor sent: 3 peeks with room for %d install %d, receiving it installs %d", room, peeked, len(m.fds)), err
}
