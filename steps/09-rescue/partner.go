//go:build linux

package main

// Another process: to see that it dies, and to see to it. To copy: this file, with control.go.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// partner is the process at the other end of a control socket. A pid may name another process
// tomorrow, a pidfd never does: pidfd_open(2).
type partner struct {
	*socket.Conn
	pid, pidfd int
}

// partnerAt opens the process at the other end of c, if it is this user's. It owns c.
func partnerAt(c *socket.Conn) (*partner, error) {
	who, err := peerOf(c)
	if err != nil {
		c.Close()
		return nil, err
	}
	return openPartner(c, int(who.Pid))
}

// openPartner opens process pid, which has the other end of c. It owns c.
func openPartner(c *socket.Conn, pid int) (*partner, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		// The pid may be another process's by now. But the kernel closes a process's sockets before
		// it frees its pid: if the other end is still open, it is that process.
		err = c.ReadFunc(context.Background(), "poll", func(fd int) error {
			if poll(fd, 0)&unix.POLLHUP != 0 {
				return unix.ESRCH
			}
			return nil
		})
	}
	if err != nil {
		unix.Close(pidfd) // or -1, which is harmless
		c.Close()
		return nil, fmt.Errorf("pidfd_open of pid %d: %w: is it gone?", pid, err)
	}
	return &partner{c, pid, pidfd}, nil
}

// poll is poll(2) for one descriptor.
func poll(fd, timeout int) int16 {
	for {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, timeout); !errors.Is(err, unix.EINTR) {
			return ready[0].Revents
		}
	}
}

// kill begins to end the process.
func (p *partner) kill() { unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0) } // fails if it is dead

// fence makes sure that the process is dead, whatever it has died of, or is up to. Only then nothing
// of it runs any more: no thread of it is in a read(2), and what it has locked is free. (That its end
// of the socket is closed does not say so: it may have closed that itself.)
func (p *partner) fence() {
	p.kill()
	poll(p.pidfd, -1)
	unix.Close(p.pidfd)
	p.Close()
}

// startSelf starts this program once more: its very file, also if that has been replaced or removed, as
// go run does. It outlives this process.
func startSelf(files []*os.File, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, files
	return cmd, cmd.Start()
}
