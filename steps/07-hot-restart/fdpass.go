//go:build linux

package main

// Passing descriptors over a unix socket: unix(7), cmsg(3), SCM_RIGHTS. To copy: this file,
// with golang.org/x/sys/unix and github.com/mdlayher/socket. It promises that descriptors
// arrive complete and close-on-exec or not at all, and that none leaks on any error path.
//
// Use it on SOCK_SEQPACKET (or SOCK_DGRAM), where a record and its descriptors stay together.
// On SOCK_STREAM they do not: the descriptors of one sendmsg can arrive with the bytes of
// another.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors the kernel takes in one message (SCM_MAX_FD).
const maxFDs = 253

// What sendFDs refuses before the kernel sees it.
var (
	errEmptyPayload = errors.New("a message needs at least one byte of payload")
	errTooManyFDs   = fmt.Errorf("more than %d descriptors in one message", maxFDs)
)

// What receiveFDs refuses. Whatever arrived with the message has been closed.
var (
	errPayloadTruncated = errors.New("payload truncated (MSG_TRUNC): the message is longer than the buffer")
	errControlTruncated = errors.New("descriptors lost (MSG_CTRUNC): this process is out of descriptors, or the buffer for them is too small")
	errForeignControl   = errors.New("a control message that is not SCM_RIGHTS")
	errSurplusFDs       = errors.New("more descriptors than expected")
	errMissingFDs       = errors.New("fewer descriptors than expected")
)

// sendFDs sends payload and duplicates of fds as one record. The caller keeps its fds, and may
// close them as soon as sendFDs returns: those in flight are the kernel's. A record is sent
// whole or not at all, so after an error nothing has been sent.
//
// It fails with ETOOMANYREFS when this user has more descriptors in flight than its soft
// RLIMIT_NOFILE, and EMSGSIZE when the record does not fit the socket's send buffer. Only one
// goroutine may send at a time: ctx becomes the connection's write deadline.
func sendFDs(ctx context.Context, c *socket.Conn, payload []byte, fds ...int) error {
	switch {
	case len(payload) == 0:
		// On a stream the kernel would return success and drop the descriptors; on a
		// SOCK_SEQPACKET the record would look like end-of-file.
		return errEmptyPayload
	case len(fds) > maxFDs:
		return errTooManyFDs
	}
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	_, err := c.Sendmsg(ctx, payload, control, nil, 0)
	return err
}

// receiveFDs receives one record into payload, with at least least and at most most
// descriptors. They are close-on-exec, in the order in which they were sent, and the
// caller's to close. Its error is io.EOF when the other side has closed.
//
// When the record is not as expected, errors.Is tells how, fds is nil, all that came along
// has been closed, and n still says how much of payload is valid. Only one goroutine may
// receive at a time: ctx becomes the connection's read deadline.
func receiveFDs(ctx context.Context, c *socket.Conn, payload []byte, least, most int) (n int, fds []int, err error) {
	if len(payload) == 0 {
		return 0, nil, errEmptyPayload // x/sys would read a byte into a buffer of its own
	}
	// Room for everything that the kernel may deliver. A buffer for just the expected ones
	// would not be exact anyway: CmsgSpace(4) has room for two, because of alignment.
	control := make([]byte, unix.CmsgSpace(4*maxFDs))
	var controlLen, flags int
	receive := func(fd int) (err error) {
		// Without MSG_CMSG_CLOEXEC they would leak into every child, whatever the sender had set.
		n, controlLen, flags, _, err = unix.Recvmsg(fd, payload, control, unix.MSG_CMSG_CLOEXEC)
		return err
	}
	// Not c.Recvmsg: of an empty record it makes io.EOF, and forgets the descriptors in it.
	err = c.ReadFunc(ctx, "recvmsg", receive)
	if errors.Is(err, unix.ECONNRESET) || err == nil && n == 0 && controlLen == 0 {
		// Neither is the end yet. If the other side closes while its own queue holds something
		// unread, the kernel says ECONNRESET once, before it hands out what is in ours. And it
		// looks at the queue first, and then whether the other side is gone: what came in
		// between it has not seen. The second answer is final, as nothing can come any more.
		err = c.ReadFunc(ctx, "recvmsg", receive)
	}
	switch {
	case err == nil && n == 0 && controlLen == 0,
		errors.Is(err, unix.ENOTCONN): // older kernels (5.10), after a send met the other side just closing
		return 0, nil, io.EOF
	case err != nil:
		return 0, nil, err
	}
	fds, err = parseControl(control[:controlLen])
	if wrong := checkRecord(n, len(fds), flags, least, most); err == nil {
		err = wrong
	} else if wrong != nil {
		err = fmt.Errorf("%w; %w", wrong, err)
	}
	if err != nil {
		return n, nil, errors.Join(err, closeFDs(fds))
	}
	return n, fds, nil
}

// parseControl returns every descriptor in a received control buffer, also when there is an
// error: each of them is open in this process, whatever else is wrong.
func parseControl(control []byte) (fds []int, err error) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, parseErr := unix.ParseOneSocketControlMessage(control)
		if parseErr != nil {
			return fds, fmt.Errorf("%w: its length makes no sense", errForeignControl)
		}
		if header.Level != unix.SOL_SOCKET || header.Type != unix.SCM_RIGHTS {
			err = fmt.Errorf("%w: level %d, type %d", errForeignControl, header.Level, header.Type)
		}
		if carriesFDs(header) {
			fds = appendFDs(fds, data)
		}
		control = rest
	}
	return fds, err
}

// appendFDs appends the descriptors in data, an array of C ints. The kernel writes a negative
// number where it had none to give: nothing is open under that.
func appendFDs(fds []int, data []byte) []int {
	for ; len(data) >= 4; data = data[4:] {
		if fd := int(int32(binary.NativeEndian.Uint32(data))); fd >= 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// carriesFDs reports whether the data of a control message are open descriptors. A socket
// with SO_PASSPIDFD (Linux 6.5) gets SCM_PIDFD with every message.
func carriesFDs(h unix.Cmsghdr) bool {
	return h.Level == unix.SOL_SOCKET && (h.Type == unix.SCM_RIGHTS || h.Type == unix.SCM_PIDFD)
}

// checkRecord says what is wrong with a record of n bytes that brought so many descriptors.
func checkRecord(n, fds, flags, least, most int) error {
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		return errControlTruncated
	case flags&unix.MSG_TRUNC != 0:
		return errPayloadTruncated
	case n == 0:
		return errEmptyPayload
	case fds > most:
		return fmt.Errorf("%w: %d, not %d", errSurplusFDs, fds, most)
	case fds < least:
		return fmt.Errorf("%w: %d, not %d", errMissingFDs, fds, least)
	}
	return nil
}

// closeFDs closes descriptors that no one else owns.
func closeFDs(fds []int) error {
	var err error
	for _, fd := range fds {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
	}
	return err
}
