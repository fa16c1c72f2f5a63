//go:build linux

package main

import (
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// The process at the other end of a control connection, as a pidfd. To copy: this file with
// pidfd.go, denied.go, control.go, hello.go, fdpass.go and borrow.go.

// openPeer opens the process at the other end of a control connection, and says how. That is
// the process that called listen(2), and it cannot name another one: whatever it offers is a
// number in its own table. So root may join anybody.
//
// (Unless its listener was given to it: then it names numbers in the table of the one that made
// it. Root should not join where root has made the listener for somebody else.)
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
		t.pidfd, err = openConnected(t.pid, int(cred.Uid), control)
	}
	if err != nil {
		t.pidfd = -1
		return target{}, "", fmt.Errorf("pidfd of pid %d: %w", t.pid, t.explain(err))
	}
	return t, how, nil
}

// openConnected opens the process with that pid, which was at the other end of control when it
// connected. It may have ended since, and another may have got its number. That is found out
// by looking at the connection *afterwards*: the kernel closes a process's sockets before it
// frees its pid. So if the other end is still open, pid still meant the one that opened it.
//
// If it has passed its end on before it ended, the pid may be stale all the same. So the process
// must be of the user as which the other end was opened: who plays that trick gets us to look into
// nothing that is not open to them anyway.
func openConnected(pid, uid int, control *socket.Conn) (pidfd int, err error) {
	if pid == 0 {
		return -1, errors.New("it is in a pid namespace that this process does not see, which takes SO_PEERPIDFD (Linux 6.5)")
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	if err := errors.Join(target{pidfd, pid}.runsAs(uid), stillOpen(control)); err != nil {
		return -1, errors.Join(err, closeFDs([]int{pidfd}))
	}
	return pidfd, nil
}

func (t target) runsAs(uid int) error {
	s, err := t.subject()
	if err == nil && s.uids[1] != uid {
		err = fmt.Errorf("it runs as uid %d, and connected as uid %d: another process may have its pid by now", s.uids[1], uid)
	}
	return err
}

// stillOpen is nil if somebody has the other end of control.
func stillOpen(control *socket.Conn) error {
	return borrow(control, func(fd int) error {
		if polled(fd, unix.POLLIN)&unix.POLLHUP != 0 {
			return errors.New("it has hung up")
		}
		return nil
	})
}

// letFetch lets p fetch this process's descriptors where Yama would not (ptrace_scope 1, see
// PR_SET_PTRACER in prctl(2)): a process that is not our ancestor, but runs as the same user.
// It may then do everything that ptrace(2) can, so the caller calls revoke as soon as p has hung up.
func letFetch(p peer) (revoke func()) {
	if int(p.uid) != os.Geteuid() {
		return func() {} // root's, which needs no leave
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
