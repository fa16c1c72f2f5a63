//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// look pulls one descriptor out of another process and says what it is. It reads nothing from it
// and changes nothing: offset, flags and queues are those of both.
func look(pid, number int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open of pid %d: %w", pid, explain(pid, err))
	}
	defer unix.Close(pidfd)
	fd, err := fetch(pid, pidfd, number)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_GETFL", err)
	}
	fmt.Printf("pid %d, descriptor %d: here it is %d\n", pid, number, fd)
	fmt.Printf("  what: %q, flags %#o (O_NONBLOCK is %#o)\n", name, flags, unix.O_NONBLOCK)
	if offset, err := unix.Seek(fd, 0, io.SeekCurrent); err == nil { // tells, and does not move
		fmt.Printf("  offset: %d\n", offset)
	}
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
		fmt.Printf("  socket: %s -> %s, cookie %d\n", address(unix.Getsockname(fd)), address(unix.Getpeername(fd)), cookie)
	}
	fmt.Printf("  description: %s\n", compare(pid, number, fd))
	return nil
}

// address writes a socket's address as package net does.
func address(sa unix.Sockaddr, err error) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr).Unmap()
		if link, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil { // fe80::1 is one on each link
			ip = ip.WithZone(link.Name)
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		return fmt.Sprintf("%q", sa.Name) // "@" if it has no name
	case nil:
		return fmt.Sprintf("nobody (%v)", err)
	}
	return fmt.Sprintf("%+v", sa)
}

// kcmpFile is KCMP_FILE of <linux/kcmp.h>: compare two open file descriptions.
const kcmpFile = 0

// compare asks the kernel whether two processes' descriptors are one open file description, and
// not only one file (kcmp(2)).
func compare(pid, number, fd int) string {
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(os.Getpid()), kcmpFile, uintptr(number), uintptr(fd), 0)
	switch {
	case errno != 0:
		return fmt.Sprintf("unknown (kcmp: %v)", errno)
	case order != 0:
		return "another one by now (kcmp)"
	}
	return "the same there and here (kcmp)"
}
