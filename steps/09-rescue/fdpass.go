//go:build linux

package main

// Passing descriptors over a unix socket: unix(7), cmsg(3), SCM_RIGHTS. To copy: this file, with
// golang.org/x/sys/unix and github.com/mdlayher/socket. It promises that descriptors arrive
// complete and close-on-exec or not at all, and that none leaks on any error path.
//
// Use it on SOCK_SEQPACKET, where a record and its descriptors stay together. On SOCK_STREAM
// the descriptors of one sendmsg(2) can arrive with the bytes of another.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// scmMaxFD is how many descriptors the kernel takes in one message (SCM_MAX_FD in unix(7)).
const scmMaxFD = 253

// errBadRecord is a record that was not as expected. It has been received whole, whatever came
// with it has been closed, and the conversation can go on.
var errBadRecord = errors.New("bad record")

// sendFDs sends payload, of at least one byte, and duplicates of fds as one record. The caller
// keeps fds, and may close them at once: those in flight are the kernel's. A record is sent whole
// or not at all. It waits for room in the queue until the connection's write deadline.
//
// It fails with EINVAL for more than 253 descriptors, ETOOMANYREFS when this user has more in flight
// than its soft RLIMIT_NOFILE, EMSGSIZE when the record does not fit the send buffer, and EPIPE when
// the other side is gone.
func sendFDs(c *socket.Conn, payload []byte, fds ...int) error {
	if len(payload) == 0 { // on SOCK_SEQPACKET an empty record looks like end-of-file
		return errors.New("send: a record needs at least one byte of payload")
	}
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	_, err := c.Sendmsg(context.Background(), payload, control, nil, 0)
	return err
}

// receiveFDs receives one record into payload, with minFDs to maxFDs descriptors, which are the
// caller's to close, close-on-exec, and in the order in which they were sent. It returns io.EOF
// when the other side is gone and nothing is queued any more, an error that wraps errBadRecord,
// or os.ErrDeadlineExceeded at the connection's read deadline.
func receiveFDs(c *socket.Conn, payload []byte, minFDs, maxFDs int) (n int, fds []int, err error) {
	// Room for all that can come. A buffer for just the expected ones is never exact: CmsgSpace(4)
	// has room for two, because of alignment.
	control := make([]byte, unix.CmsgSpace(4*scmMaxFD))
	n, controlLen, flags, err := receiveRecord(c, payload, control)
	if err != nil {
		return 0, nil, err
	}
	fds, err = parseControl(control[:controlLen])
	switch { // the kernel reports no error, only flags (recvmsg(2)), which say more than err
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("%w: descriptors lost (MSG_CTRUNC): is this process out of descriptors? (ulimit -n)", errBadRecord)
	case flags&unix.MSG_TRUNC != 0:
		err = fmt.Errorf("%w: longer than %d bytes (MSG_TRUNC)", errBadRecord, len(payload))
	case n == 0:
		err = fmt.Errorf("%w: empty", errBadRecord)
	case len(fds) < minFDs || len(fds) > maxFDs:
		err = fmt.Errorf("%w: %d descriptors, not %d to %d", errBadRecord, len(fds), minFDs, maxFDs)
	}
	if err != nil {
		closeFDs(fds)
		return 0, nil, err
	}
	return n, fds, nil
}

// receiveRecord is recvmsg(2), and knows the end of a SOCK_SEQPACKET queue when it sees it.
func receiveRecord(c *socket.Conn, payload, control []byte) (n, controlLen, flags int, err error) {
	for asked := 1; ; asked++ {
		// Not c.Recvmsg, which forgets the descriptors of an empty record.
		err = c.ReadFunc(context.Background(), "recvmsg", func(fd int) (err error) {
			// Without MSG_CMSG_CLOEXEC every child would inherit them, whatever the sender had set.
			n, controlLen, flags, _, err = unix.Recvmsg(fd, payload, control, unix.MSG_CMSG_CLOEXEC)
			return err
		})
		// Is this really the end? A peer that closes with something unread in its own queue makes
		// the kernel say ECONNRESET, once, before it hands out what is in ours. And recvmsg looks
		// at the queue first, then whether the peer is gone: what came in between, it has not
		// seen. So ask twice. The second answer is final, as nothing can come any more.
		empty := err == nil && n == 0 && controlLen == 0
		ended := empty || errors.Is(err, unix.ENOTCONN) // Linux 5.10, if we sent while the peer was closing
		switch {
		case errors.Is(err, unix.ECONNRESET), ended && asked == 1: // ask again
		case ended:
			return 0, 0, 0, io.EOF
		default:
			return n, controlLen, flags, err
		}
	}
}

// parseControl returns every descriptor in a received control buffer, also beside an error: each
// of them is open in this process.
func parseControl(control []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control) // the kernel writes nothing that fails here
	for _, m := range messages {                             // all of level SOL_SOCKET, on a unix socket
		if m.Header.Type != unix.SCM_RIGHTS {
			err = fmt.Errorf("%w: a control message of type %d", errBadRecord, m.Header.Type)
		}
		// A socket with SO_PASSPIDFD (Linux 6.5) gets SCM_PIDFD with every record: one descriptor, or
		// a negative number.
		if m.Header.Type == unix.SCM_RIGHTS || m.Header.Type == unix.SCM_PIDFD {
			for data := m.Data; len(data) >= 4; data = data[4:] {
				if fd := int32(binary.NativeEndian.Uint32(data)); fd >= 0 {
					fds = append(fds, int(fd))
				}
			}
		}
	}
	return fds, err
}

// closeFDs closes descriptors that nobody else owns.
func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
