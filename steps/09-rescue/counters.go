//go:build linux

package main

// How far a dead process had come with a TCP socket: the kernel knows. To copy: this file, with
// golang.org/x/sys/unix.

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// progress is how far the processes that have had a connection had come with it, in bytes since it was
// accepted.
type progress struct {
	read, written uint64 // by read(2) and write(2), to the byte, also if the process was killed in one
	open          bool   // no process of ours has ended it, and the client has not reset it
}

// progressOf asks the kernel. No process may read from the socket or write to it meanwhile. The client
// may: what it sends and acknowledges changes several counters, and they are read one after another.
// So read them until nothing has changed in between.
//
// It must be a plain TCP socket that was accepted. Where this side has connected, its SYN is counted as a
// byte that was written. Of Multipath TCP, which package net's listeners speak by default, SIOCINQ tells what
// the connection has, and TCP_INFO what one of its paths has. And the socket must have SO_OOBINLINE: without it
// an urgent byte is counted as received, and read(2) does not return it.
func progressOf(fd int) (progress, error) {
	for {
		before, err1 := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		unread, err2 := unix.IoctlGetInt(fd, unix.SIOCINQ)   // received, and not read: tcp(7)
		unacked, err3 := unix.IoctlGetInt(fd, unix.SIOCOUTQ) // written, and not acknowledged
		after, err4 := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return progress{}, fmt.Errorf("ask for TCP_INFO, SIOCINQ and SIOCOUTQ: %w", err)
		}
		if before.Bytes_received != after.Bytes_received || before.Bytes_acked != after.Bytes_acked || before.State != after.State {
			continue
		}
		ended := after.State == unix.BPF_TCP_CLOSE_WAIT
		if ended { // the client's FIN is counted as a byte, and is none
			after.Bytes_received--
		}
		return progress{
			read:    after.Bytes_received - uint64(unread),
			written: after.Bytes_acked + uint64(unacked),
			open:    ended || after.State == unix.BPF_TCP_ESTABLISHED,
		}, nil
	}
}
