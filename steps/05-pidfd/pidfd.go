//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"syscall"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// How the descriptor gets from one process to the other: here the new one pulls it, with
// pidfd_getfd(2), out of the table of the old one. The offer names its number and nothing more. So
// it dies with the old process: what has not been fetched by then cannot be fetched any more.
//
// To copy, instead of push.go: this file and denied.go. The old process calls letFetch.

// offerFDs is how many descriptors come with an offer.
const offerFDs = 0

// sendOffer sends an offer. Until it is answered, its sender keeps the connection open, and under
// the same number.
func sendOffer(ctx context.Context, control *socket.Conn, m message, _ syscall.Conn) error {
	return sendMessage(ctx, control, m)
}

// fetchFD returns a duplicate of the descriptor that an offer names, which becomes the caller's.
// The number may mean something else by now, if the old process is ending or lies: the cookie
// in the offer tells.
func (t *taker) fetchFD(m message, _ []int) (int, error) {
	from, _, err := openPeer(t.control)
	if err != nil {
		return -1, err
	}
	defer from.Close()
	return from.fetch(m.FD)
}

// target is a process whose descriptors are wanted. Its owner closes it.
type target struct {
	pidfd int // means this process for good
	pid   int // meant it when the pidfd was made; may be given to another once it has ended
}

func (t target) Close() error { return os.NewSyscallError("close", unix.Close(t.pidfd)) }

// fetch duplicates a descriptor of the target into this process, close-on-exec, as dup(2) would
// within one. It is the caller's to close. The target is not asked, and does not notice. Why it
// is not allowed, if it is not, stands in the error (pidfd_getfd(2)).
func (t target) fetch(number int) (int, error) {
	fd, err := unix.PidfdGetfd(t.pidfd, number, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd of pid %d, descriptor %d: %w", t.pid, number, t.explain(err))
	}
	return fd, nil
}

// openPeer opens the process at the other end of a control connection, and says how.
func openPeer(control *socket.Conn) (t target, how string, err error) {
	cred, err := credentials(control)
	if err != nil {
		return target{}, "", err
	}
	t = target{pid: int(cred.Pid)}
	how = "from the control socket (SO_PEERPIDFD)"
	err = borrow(control, func(fd int) (err error) {
		t.pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		return os.NewSyscallError("getsockopt SO_PEERPIDFD", err)
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		how = "by its pid (pidfd_open): SO_PEERPIDFD needs Linux 6.5"
		t.pidfd, err = openConnected(t.pid, control)
	}
	if err != nil {
		return target{}, "", fmt.Errorf("pidfd of pid %d: %w", t.pid, t.explain(err))
	}
	return t, how, nil
}

// openConnected opens the process with that pid, which was at the other end of control when it
// connected. It may have ended since, and another may have got its number. That is found out
// by looking at the connection *afterwards*: the kernel closes a process's sockets before it
// frees its pid. So if the other end is still open, pid still meant the one that opened it.
// (Unless that one has passed its end on: to deceive its own user, who learns it by the cookie.)
func openConnected(pid int, control *socket.Conn) (pidfd int, err error) {
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	err = borrow(control, func(fd int) error {
		if polled(fd, unix.POLLIN)&unix.POLLHUP != 0 {
			return errors.New("it has hung up")
		}
		return nil
	})
	if err != nil {
		return -1, errors.Join(err, closeFDs([]int{pidfd}))
	}
	return pidfd, nil
}

// polled is what poll(2) says of a descriptor at this moment.
func polled(fd int, events int16) (revents int16) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return 0 // interrupted: as if nothing had happened yet
	}
	return fds[0].Revents
}

// letFetch lets p fetch this process's descriptors where Yama would not (ptrace_scope 1, see
// PR_SET_PTRACER in prctl(2)): a process that is not our ancestor, but runs as the same user.
// It may then do everything that ptrace(2) can, so the caller calls revoke as soon as p is gone.
func letFetch(p peer) (revoke func()) {
	if int(p.uid) != os.Geteuid() {
		return func() {} // root asks nobody
	}
	setPtracer(p.pid)
	return func() { setPtracer(0) }
}

func setPtracer(pid int) {
	err := unix.Prctl(unix.PR_SET_PTRACER, uintptr(pid), 0, 0, 0)
	// EINVAL: there is no Yama, or no such process any more. In both cases nothing is to be done.
	if err != nil && !errors.Is(err, unix.EINVAL) {
		log.Printf("prctl PR_SET_PTRACER %d: %v", pid, err)
	}
}
