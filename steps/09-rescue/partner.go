//go:build linux

package main

// Another process: to see that it dies, and to see to it. To copy: this file, with control.go.
// pidfd_open(2): a pid may name another process tomorrow, a pidfd never does.

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// partner is the process at the other end of a control socket.
type partner struct {
	*socket.Conn
	pid   int
	pidfd *socket.Conn // no socket, but it waits in Go's poller like one
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
	fd, err := unix.PidfdOpen(pid, 0)
	var pidfd *socket.Conn
	if err == nil {
		pidfd, err = socket.New(fd, "pidfd")
	}
	if err == nil {
		// The pid may be another process's by now. But the kernel closes a process's sockets before
		// it frees its pid: if the other end is still open, it is that process.
		err = c.ReadFunc(context.Background(), "poll", func(fd int) error {
			ready := []unix.PollFd{{Fd: int32(fd)}}
			if _, err := unix.Poll(ready, 0); err != nil {
				return err
			}
			if ready[0].Revents&unix.POLLHUP != 0 {
				return unix.ESRCH
			}
			return nil
		})
		if err != nil {
			pidfd.Close()
		}
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("pidfd_open of pid %d: %w: is it gone?", pid, err)
	}
	return &partner{c, pid, pidfd}, nil
}

// kill begins to end the process.
func (p *partner) kill() error {
	return p.pidfd.ReadFunc(context.Background(), "pidfd_send_signal", func(fd int) error {
		return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	})
}

// fence makes sure that the process is dead: of whatever it has died, or whatever it is up to. Only then
// nothing of it runs any more: no thread of it is in a read(2), and what it has locked is free. (That
// its end of the socket is closed does not say so: it may have closed that itself.)
func (p *partner) fence() {
	p.kill()                                                            // fails if it is dead
	p.pidfd.ReadFunc(context.Background(), "poll", func(fd int) error { // fails if it is closed
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n > 0 || err != nil {
			return err
		}
		return unix.EAGAIN // wait in the poller, and ask again
	})
	p.pidfd.Close()
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
