//go:build linux

package main

// What unix.UnixRights, unix.SendmsgN and unix.Recvmsg hide: the control message byte by byte,
// and the two system calls. It is here to be read; fdpass.go is the file to copy.

import (
	"context"
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// rights builds the control message that carries fds. cmsg(3) lays it out:
//
//	cmsg_len    size_t   header and data, without the padding behind them
//	cmsg_level  int      SOL_SOCKET
//	cmsg_type   int      SCM_RIGHTS
//	data        int ...  the descriptors
//	padding              so that a next header would be aligned
func rights(fds ...int) []byte {
	data := cmsgAlign(unix.SizeofCmsghdr)
	length := data + 4*len(fds)
	header := unix.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}
	header.SetLen(length)

	control := make([]byte, cmsgAlign(length))
	copy(control, unsafe.Slice((*byte)(unsafe.Pointer(&header)), unix.SizeofCmsghdr))
	for i, fd := range fds {
		binary.NativeEndian.PutUint32(control[data+4*i:], uint32(fd))
	}
	return control
}

// cmsgAlign is CMSG_ALIGN of cmsg(3): up to a multiple of a word, 8 bytes or 4.
func cmsgAlign(n int) int { return (n + unix.SizeofPtr - 1) &^ (unix.SizeofPtr - 1) }

// sendRaw sends payload and control with one sendmsg(2), and returns what that returned.
func sendRaw(ctx context.Context, c *socket.Conn, payload, control []byte) (n int, err error) {
	err = c.WriteFunc(ctx, "sendmsg", func(fd int) (err error) {
		n, _, err = message(unix.SYS_SENDMSG, fd, payload, control, 0)
		return err // EAGAIN makes WriteFunc wait for room, and call this once more
	})
	return n, err
}

// receiveRaw receives with one recvmsg(2), and returns what that returned and left in its
// msghdr: how much of control it has filled, and flags such as MSG_CTRUNC.
func receiveRaw(ctx context.Context, c *socket.Conn, payload, control []byte, flags int) (n int, filled []byte, got int, err error) {
	err = c.ReadFunc(ctx, "recvmsg", func(fd int) error {
		var msg unix.Msghdr
		n, msg, err = message(unix.SYS_RECVMSG, fd, payload, control, flags)
		filled, got = control[:msg.Controllen], int(msg.Flags)
		return err
	})
	return n, filled, got, err
}

// message makes the system call trap with a struct msghdr (recvmsg(2)), and returns that too.
func message(trap uintptr, fd int, payload, control []byte, flags int) (int, unix.Msghdr, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(payload)}
	iov.SetLen(len(payload))
	msg := unix.Msghdr{Iov: &iov, Control: unsafe.SliceData(control)}
	msg.SetIovlen(1)
	msg.SetControllen(len(control))
	// The conversion to uintptr must stand in the call itself: only there does it keep msg
	// alive and in its place (package unsafe, rule 4). iov and the buffers are safe, because
	// msg holds pointers to them, not numbers.
	n, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
	if errno != 0 {
		return 0, msg, errno
	}
	return int(n), msg, nil
}

// dump explains a control buffer in lines: offset, bytes, meaning. It holds one message at
// most: the kernel merges what a sender puts into several.
func dump(control []byte) []string {
	if len(control) < unix.SizeofCmsghdr {
		return []string{"no control message"}
	}
	header, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		return []string{fmt.Sprintf("no control message: % x", control)}
	}
	var lines []string
	at := 0
	add := func(size uintptr, meaning string, args ...any) {
		bytes := fmt.Sprintf("% x", control[at:at+int(size)])
		lines = append(lines, fmt.Sprintf("%4d  %-23s  ", at, bytes)+fmt.Sprintf(meaning, args...))
		at += int(size)
	}
	add(unsafe.Sizeof(header.Len), "cmsg_len: %d, which is %d of header + %d of data", header.Len, int(header.Len)-len(data), len(data))
	add(unsafe.Sizeof(header.Level), "cmsg_level: %d %s", header.Level, levelNames[header.Level])
	add(unsafe.Sizeof(header.Type), "cmsg_type: %d %s", header.Type, typeNames[header.Type])
	for ; len(data) >= 4; data = data[4:] {
		add(4, "descriptor %d", int32(binary.NativeEndian.Uint32(data)))
	}
	if padding := len(control) - at; padding > 0 {
		add(uintptr(padding), "padding to a multiple of %d", unix.SizeofPtr)
	}
	return lines
}

var (
	levelNames = map[int32]string{unix.SOL_SOCKET: "SOL_SOCKET"}
	typeNames  = map[int32]string{unix.SCM_RIGHTS: "SCM_RIGHTS"}
)
