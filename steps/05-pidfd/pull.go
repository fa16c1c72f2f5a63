//go:build linux

package main

// How the descriptor gets across: here the new process pulls it out of the old one's table, with
// pidfd_getfd(2). The offer names its number and nothing more, so it dies with the old process:
// what has not been fetched by then cannot be fetched. Step 04 has push.go in the place of this
// file, under the same steal.go.
//
// To copy: the files of step 04, with this one and pidfd.go in the place of push.go.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// offerFDs is how many descriptors come with an offer.
const offerFDs = 0

// sendOffer sends an offer. Until it is answered, its sender keeps c open under the number that it
// names.
func sendOffer(to *socket.Conn, m message, _ syscall.Conn) error {
	p, err := peerOf(to)
	if err != nil {
		return err
	}
	// Where Yama's ptrace_scope is 1, only an ancestor may look into a process, and the one that it
	// names: prctl(2). That is leave for all that ptrace(2) can do, until the next one is named.
	// EINVAL: there is no Yama, or the process is gone.
	err = unix.Prctl(unix.PR_SET_PTRACER, uintptr(p.Pid), 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("prctl PR_SET_PTRACER", err)
	}
	return sendMessage(to, m)
}

// fetchFD returns a duplicate of the descriptor that an offer names, which is the caller's. An old
// process that is ending, or lies, names something else: the cookie in the offer tells.
func fetchFD(from *socket.Conn, m message, _ []int) (int, error) {
	pid, pidfd, err := openPeer(from)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return fetch(pid, pidfd, m.FD)
}

// openPeer opens the process at the other end: the one that called listen(2). It cannot name
// another one. So whatever it offers is a number in its own table. The caller closes the pidfd.
func openPeer(from *socket.Conn) (pid, pidfd int, err error) {
	p, err := peerOf(from)
	if err != nil {
		return 0, -1, err
	}
	pid = int(p.Pid)
	pidfd, err = from.GetsockoptInt(unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) { // Linux before 6.5
		pidfd, err = unix.PidfdOpen(pid, 0)
		// Its pid may have been another process's by then. But the kernel closes a process's sockets
		// before it frees its pid: if the other end is open *now*, the pid was still its own.
		if err == nil && hungUp(from) {
			unix.Close(pidfd)
			err = unix.ESRCH
		}
	}
	if err != nil {
		err = fmt.Errorf("pidfd of pid %d: %w", pid, explain(pid, err))
	}
	return pid, pidfd, err
}

// hungUp reports whether nobody has the other end of c any more.
func hungUp(c *socket.Conn) (hup bool) {
	err := c.ReadFunc(context.Background(), "poll", func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP need not be asked for
		_, err := unix.Poll(fds, 0)
		hup = fds[0].Revents&unix.POLLHUP != 0
		return err
	})
	return hup || err != nil
}
