//go:build linux

package main

// What the kernel calls a socket. To copy: this file, with golang.org/x/sys/unix.

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// identify asks the kernel about a connection or listener. fd is its number in this process's
// descriptor table, and means nothing in another process. cookie (SO_COOKIE) is the socket's own,
// the same for every process that has it, and never used again while the machine is up.
func identify(c syscall.Conn) (fd int, cookie uint64, err error) {
	err = borrow(c, func(number int) (failed error) {
		fd = number
		cookie, failed = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return os.NewSyscallError("getsockopt SO_COOKIE", failed)
	})
	return fd, cookie, err
}

// borrow lends f the number of c's descriptor, which stays c's: while f runs, nobody can close it
// or reuse its number. (File().Fd() would duplicate the descriptor, and make it blocking for every
// process that has it.)
func borrow(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if lendErr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); lendErr != nil {
		return lendErr
	}
	return err
}
