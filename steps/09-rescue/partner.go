//go:build linux

package main

// Another process of this program: to start it, and to see to it that it is dead. To copy: this file
// and socket.go, with golang.org/x/sys/unix and github.com/mdlayher/socket. It promises that after fence
// nothing of the other process runs. It starts /proc/self/exe, with descriptors 3 to 6.

import (
	"fmt"
	"os"
	"syscall"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// partner is the process at the other end of a control socket. A keeper is one to its servers, and
// they to it. The socket has no name, so nobody else can connect to it: only processes that one of us
// has started take part.
type partner struct {
	*socket.Conn
	pid   int           // for the log: another process may have it tomorrow
	pidfd *os.File      // a pidfd never names another one: pidfd_open(2)
	dead  chan struct{} // closed when it is
}

// Descriptors that a process is started with, behind stdin, stdout and stderr.
const (
	atControl = iota + 3
	atMemory
	atListener
	atParent // a pidfd of the process that has started it
)

// startPartner starts this program once more: its very file, also if that has been replaced or
// removed, as go run does. It outlives this process. (Package os/exec would make the listener
// blocking, for everybody who has it.)
func startPartner(memory, listener int, args ...string) (*partner, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("pidfd_open: %w (ENOSYS: it needs Linux 5.3; EMFILE: raise ulimit -n)", err)
	}
	defer unix.Close(self)
	pidfd := -1
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{os.Args[0]}, args...), &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, uintptr(pair[1]), uintptr(memory), uintptr(listener), uintptr(self)},
		Sys:   &syscall.SysProcAttr{PidFD: &pidfd},
	})
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start /proc/self/exe: %w", err)
	}
	return newPartner(pair[0], pid, pidfd)
}

// parent is the process that has started this one.
func parent() (*partner, error) {
	for fd := atControl; fd <= atParent; fd++ {
		unix.CloseOnExec(fd)
	}
	return newPartner(atControl, os.Getppid(), atParent)
}

func newPartner(control, pid, pidfd int) (*partner, error) {
	c, err := socket.New(control, "control")
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w: -role is for the program itself to use", control, err)
	}
	p := &partner{c, pid, os.NewFile(uintptr(pidfd), "pidfd"), make(chan struct{})}
	go func() {
		ready := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		for ready[0].Revents == 0 {
			unix.Poll(ready, -1) // fails if a signal comes: EINTR
		}
		close(p.dead)
		c.Shutdown(unix.SHUT_RD)     // what is queued can still be read. Somebody else may have its end open
		unix.Wait4(pid, nil, 0, nil) // fails if it is no child of this process
	}()
	return p, nil
}

// kill begins to end the process.
func (p *partner) kill() {
	borrow(p.pidfd, func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) }) // fails if it is dead
}

// fence makes sure that the process is dead, whatever it has died of, or is up to. Only then nothing
// of it runs any more: no thread of it is in a read(2). (That its end of the socket is closed does not
// say so: it may have closed that itself.)
func (p *partner) fence() {
	p.kill()
	<-p.dead
	p.pidfd.Close()
	p.Close()
}
