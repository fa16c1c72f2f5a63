//go:build linux

package main

// How far a dead process had come with a TCP socket: the kernel knows. To copy: this file, with
// golang.org/x/sys/unix.

import (
	"os"

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
// A plain TCP socket is needed: a Multipath TCP socket (protocol 262, which package net's listeners are
// by default) has counters of other meanings. And it must have SO_OOBINLINE: without it an urgent byte
// is counted as received, and read(2) does not return it.
func progressOf(fd int) (progress, error) {
	for {
		before, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return progress{}, os.NewSyscallError("getsockopt TCP_INFO", err)
		}
		unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ) // received, and not read: tcp(7)
		if err != nil {
			return progress{}, os.NewSyscallError("ioctl SIOCINQ", err)
		}
		unacked, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ) // written, and not acknowledged
		if err != nil {
			return progress{}, os.NewSyscallError("ioctl SIOCOUTQ", err)
		}
		after, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return progress{}, os.NewSyscallError("getsockopt TCP_INFO", err)
		}
		if before.Bytes_received != after.Bytes_received || before.Bytes_acked != after.Bytes_acked || before.State != after.State {
			continue
		}
		received := after.Bytes_received
		if after.State == unix.BPF_TCP_CLOSE_WAIT { // the client's FIN is counted as a byte, and is none
			received--
		}
		return progress{
			read:    received - uint64(unread),
			written: after.Bytes_acked + uint64(unacked),
			open:    after.State == unix.BPF_TCP_ESTABLISHED || after.State == unix.BPF_TCP_CLOSE_WAIT,
		}, nil
	}
}
