//go:build linux

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// recvmsg(2), cmsg(3): the kernel closes the descriptors for which the control buffer has no
// room. recvmsg does not fail; it sets MSG_CTRUNC. And a buffer cannot set an exact limit:
// CMSG_SPACE rounds up to a word, so on 64 bits the one for 1 descriptor has room for 2.

// Wrong: room for the one descriptor that is expected.
func shortBufferWrong(s *sockets) (string, error) { return receiveThree(s, 1) }

// Right: room for as many as one message can carry, and a check of how many came.
func shortBufferRight(s *sockets) (string, error) { return receiveThree(s, maxFDs) }

func receiveThree(s *sockets, room int) (string, error) {
	if err := send(s.sender, "three", stdin, stdin, stdin); err != nil {
		return "", err
	}
	m, err := receive(s.receiver, room, unix.MSG_CMSG_CLOEXEC)
	defer closeFDs(m.fds...)
	return fmt.Sprintf("room for %d (%d bytes): recvmsg gets %d of 3 descriptors, MSG_CTRUNC %t, error %v",
		room, unix.CmsgSpace(4*room), len(m.fds), m.truncated(), err), nil
}
