//go:build linux

package main

// What unix.UnixRights and unix.SendmsgN hide: the control message byte by byte, and the system
// call. It is here to be read; fdpass.go is the file to copy.

import (
	"context"
	"encoding/binary"
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

// sendRaw sends payload and control with one sendmsg(2), through a struct msghdr (recvmsg(2)).
func sendRaw(c *socket.Conn, payload, control []byte) error {
	iov := unix.Iovec{Base: unsafe.SliceData(payload)}
	iov.SetLen(len(payload))
	msg := unix.Msghdr{Iov: &iov, Control: unsafe.SliceData(control)}
	msg.SetIovlen(1)
	msg.SetControllen(len(control))
	return c.WriteFunc(context.Background(), "sendmsg", func(fd int) error {
		// The conversion to uintptr must stand in the call itself: only there does it keep msg alive
		// and in its place (package unsafe, rule 4). What msg points to is safe with it.
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), 0)
		if errno != 0 {
			return errno // EAGAIN makes WriteFunc wait for room, and call this once more
		}
		return nil
	})
}
