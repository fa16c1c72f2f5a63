//go:build linux

package main

import (
	"fmt"
	"net"
)

// unix(7): a stream has no message boundaries. One recvmsg(2) goes on until its buffer is full or
// it has read a piece that carries descriptors, so descriptors come with the bytes of earlier
// messages. SOCK_SEQPACKET keeps each message and its descriptors together.

// Wrong: SOCK_STREAM.
func streamCoalescingWrong(s *sockets) (string, error) { return sendFour(s.client, s.server) }

// Right: SOCK_SEQPACKET.
func streamCoalescingRight(s *sockets) (string, error) { return sendFour(s.sender, s.receiver) }

func sendFour(from, to *net.UnixConn) (string, error) {
	four := []message{{payload: "AAAA"}, {payload: "aaaa"}, {payload: "BBBB", fds: []int{stdin}}, {payload: "CCCC", fds: []int{stdin}}}
	for _, m := range four {
		if err := send(from, m.payload, m.fds...); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("payload+descriptors sent: %v; received: %s", four, receiveAll(to)), nil
}
