//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unix(7), SCM_RIGHTS: at least one byte of real data must go with descriptors on a stream.
// Without it sendmsg(2) reports success, and the descriptors are lost. SOCK_SEQPACKET delivers
// them, but recvmsg returns 0: a receiver takes that for end-of-file, and leaks them.

// Wrong: no data at all. The system call is made by hand, because unix.Sendmsg and WriteMsgUnix
// would add a zero byte.
func noPayloadWrong(s *sockets) (string, error) {
	return sendOnBoth(s, func(c *net.UnixConn) error {
		control := unix.UnixRights(stdin)
		header := unix.Msghdr{Control: &control[0]}
		header.SetControllen(len(control))
		return borrow(c, func(socket int) error {
			_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(socket), uintptr(unsafe.Pointer(&header)), 0)
			if errno != 0 {
				return os.NewSyscallError("sendmsg", errno)
			}
			return nil
		})
	})
}

// Right: one byte, even if it means nothing.
func noPayloadRight(s *sockets) (string, error) {
	return sendOnBoth(s, func(c *net.UnixConn) error { return send(c, "x", stdin) })
}

func sendOnBoth(s *sockets, sendOne func(c *net.UnixConn) error) (string, error) {
	streamErr, packetErr := sendOne(s.client), sendOne(s.sender)
	return fmt.Sprintf("SOCK_STREAM: error %v, payload+descriptors received: %s; SOCK_SEQPACKET: error %v, received: %s",
		streamErr, receiveAll(s.server), packetErr, receiveAll(s.receiver)), nil
}
