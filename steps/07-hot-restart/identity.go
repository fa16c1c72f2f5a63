//go:build linux

package main

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity is what the kernel calls one socket.
type identity struct {
	fd     int    // its number in this process's descriptor table; means nothing in another
	inode  uint64 // its inode, as in /proc/PID/fd and ss -e; used again once the socket is gone
	cookie uint64 // SO_COOKIE: never used again while the machine is up
}

func (id identity) String() string {
	return fmt.Sprintf("descriptor %d, inode %d, cookie %d", id.fd, id.inode, id.cookie)
}

// identify asks the kernel about a socket.
func identify(c syscall.Conn) (id identity, err error) {
	err = borrow(c, func(fd int) (err error) {
		id, err = identifyFD(fd)
		return err
	})
	return id, err
}

// identifyFD is identify for a bare descriptor, which stays the caller's.
func identifyFD(fd int) (identity, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return identity{}, os.NewSyscallError("fstat", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return identity{}, os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	return identity{fd: fd, inode: stat.Ino, cookie: cookie}, nil
}
