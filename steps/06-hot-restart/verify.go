//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// verify checks that fd is a connected TCP socket, and the very one with that cookie. The
// descriptor stays the caller's. A number from another process's table proves nothing: the
// cookie is what both processes can see.
func verify(fd int, cookie uint64) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("not a socket (mode %#o)", stat.Mode&unix.S_IFMT)
	}
	for _, check := range []struct {
		option int
		name   string
		want   []int
	}{
		{unix.SO_DOMAIN, "SO_DOMAIN", []int{unix.AF_INET, unix.AF_INET6}},
		{unix.SO_TYPE, "SO_TYPE", []int{unix.SOCK_STREAM}},
		// Go's listeners speak Multipath TCP to clients that ask for it.
		{unix.SO_PROTOCOL, "SO_PROTOCOL", []int{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP}},
		{unix.SO_ACCEPTCONN, "SO_ACCEPTCONN", []int{0}},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, check.option)
		if err != nil {
			return os.NewSyscallError("getsockopt "+check.name, err)
		}
		if !slices.Contains(check.want, got) {
			return fmt.Errorf("not a TCP connection: %s is %d", check.name, got)
		}
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return fmt.Errorf("not connected: %w", os.NewSyscallError("getpeername", err))
	}
	id, err := identifyFD(fd)
	if err != nil {
		return err
	}
	if id.cookie != cookie {
		return fmt.Errorf("another socket: its cookie is %d, the offer says %d", id.cookie, cookie)
	}
	return nil
}
