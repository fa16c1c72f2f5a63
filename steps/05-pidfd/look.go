//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// look pulls one descriptor out of another process and writes what it is. It reads nothing from
// it and changes nothing: offset, flags and queues are those of both.
func look(pid, number int, out io.Writer) (err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	t := target{pidfd, pid}
	if err != nil {
		return fmt.Errorf("pidfd_open of pid %d: %w", pid, t.explain(err))
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	fd, err := t.fetch(number)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeFDs([]int{fd})) }()

	lines, err := describe(fd)
	if err != nil {
		return fmt.Errorf("pid %d, descriptor %d: %w", pid, number, err)
	}
	lines = append(lines, "description: "+t.compare(number, fd))
	_, err = fmt.Fprintf(out, "pid %d, descriptor %d: here it is %d\n  %s\n", pid, number, fd, strings.Join(lines, "\n  "))
	return err
}

// describe says what a descriptor is, one line for each thing.
func describe(fd int) ([]string, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_GETFL", err)
	}
	lines := []string{
		fmt.Sprintf("kind: %s, %q", kinds[stat.Mode&unix.S_IFMT], name),
		fmt.Sprintf("flags: %s", flagNames(flags)),
	}
	switch kind := stat.Mode & unix.S_IFMT; {
	case flags&unix.O_PATH != 0: // it stands for a place, and nothing is open there
	case kind == unix.S_IFSOCK:
		more, err := describeSocket(fd)
		return append(lines, more...), err
	case kind == unix.S_IFREG:
		offset, err := unix.Seek(fd, 0, io.SeekCurrent) // tells, and does not move
		if err != nil {
			return append(lines, fmt.Sprintf("offset: none (%v)", err)), nil
		}
		lines = append(lines, fmt.Sprintf("offset: %d of %d bytes", offset, stat.Size))
	}
	return lines, nil
}

var kinds = map[uint32]string{
	unix.S_IFREG:  "file",
	unix.S_IFDIR:  "folder",
	unix.S_IFIFO:  "pipe",
	unix.S_IFSOCK: "socket",
	unix.S_IFCHR:  "character device",
	unix.S_IFBLK:  "block device",
	0:             "no file", // epoll, eventfd, pidfd and the like (anon_inode)
}

// flagNames spells out the flags of an open file description (open(2)).
func flagNames(flags int) string {
	names := []string{[]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"}[flags&unix.O_ACCMODE]}
	for _, f := range []struct {
		flag int
		name string
	}{
		{unix.O_APPEND, "O_APPEND"},
		{unix.O_ASYNC, "O_ASYNC"},
		{unix.O_DIRECT, "O_DIRECT"},
		{unix.O_DSYNC, "O_DSYNC"},
		{unix.O_NOATIME, "O_NOATIME"},
		{unix.O_NONBLOCK, "O_NONBLOCK"},
		{unix.O_PATH, "O_PATH"},
	} {
		if flags&f.flag != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, "|")
}

func describeSocket(fd int) ([]string, error) {
	id, err := identifyFD(fd)
	if err != nil {
		return nil, err
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt SO_TYPE", err)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt SO_ACCEPTCONN", err)
	}
	ends := fmt.Sprintf("%s -> %s", end(unix.Getsockname(fd)), end(unix.Getpeername(fd)))
	if listens != 0 {
		ends = "listening on " + end(unix.Getsockname(fd))
	}
	return []string{
		fmt.Sprintf("socket: %s %s, %s", nameOf(domain, "family", domains), nameOf(typ, "type", types), ends),
		fmt.Sprintf("identity: inode %d, cookie %d", id.inode, id.cookie),
	}, nil
}

var (
	domains = map[int]string{unix.AF_UNIX: "AF_UNIX", unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6", unix.AF_NETLINK: "AF_NETLINK", unix.AF_PACKET: "AF_PACKET", unix.AF_VSOCK: "AF_VSOCK"}
	types   = map[int]string{unix.SOCK_STREAM: "SOCK_STREAM", unix.SOCK_DGRAM: "SOCK_DGRAM", unix.SOCK_SEQPACKET: "SOCK_SEQPACKET", unix.SOCK_RAW: "SOCK_RAW"}
)

// nameOf is the name of a number, or what it is the number of where there is none.
func nameOf(number int, what string, names map[int]string) string {
	if name, known := names[number]; known {
		return name
	}
	return fmt.Sprintf("%s %d", what, number)
}

// end is one end of a socket, in words.
func end(sa unix.Sockaddr, err error) string {
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		if sa.Name == "" || sa.Name == "@" { // of an abstract name x/sys makes @ and the name
			return "unnamed"
		}
		return fmt.Sprintf("%q", sa.Name)
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		return address(sa, err)
	case *unix.SockaddrNetlink: // port 0 is the kernel (netlink(7))
		return fmt.Sprintf("port %d, groups %#x", sa.Pid, sa.Groups)
	case *unix.SockaddrVM: // a machine and a port (vsock(7))
		if sa.CID == unix.VMADDR_CID_ANY {
			return fmt.Sprintf("any:%d", sa.Port)
		}
		return fmt.Sprintf("%d:%d", sa.CID, sa.Port)
	}
	switch {
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.EOPNOTSUPP):
		return "nobody"
	case err != nil && !errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Sprintf("unknown (%v)", err)
	}
	return "an address of its own kind"
}

// kcmpFile is KCMP_FILE of <linux/kcmp.h>: compare two open file descriptions.
const kcmpFile = 0

// compare asks the kernel whether two processes' descriptors are one open file description, and
// not only one file (kcmp(2)). It takes a pid, so it is asked whether that still meant the target.
func (t target) compare(number, fd int) string {
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(t.pid), uintptr(os.Getpid()), kcmpFile, uintptr(number), uintptr(fd), 0)
	_, err := t.procPID()
	switch {
	case errno != 0:
		return fmt.Sprintf("unknown (kcmp: %v)", errno)
	case err != nil:
		return fmt.Sprintf("unknown (%v)", err)
	case order == 0:
		return "the same there and here (kcmp)"
	}
	return "another one by now (kcmp)"
}
