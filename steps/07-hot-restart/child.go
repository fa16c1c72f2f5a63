//go:build linux

package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// child is another process of this program, which does not outlive this one.
type child struct {
	*exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // what Wait said; valid after ended
}

// startChild runs this program once more, until ctx ends at the latest.
func startChild(ctx context.Context, output io.Writer, args ...string) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{Cmd: exec.CommandContext(ctx, exe, args...), ended: make(chan struct{})}
	c.Stdout, c.Stderr = output, output
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	go func() {
		// Even SIGKILL to this process must not leave the child behind. But the child gets
		// Pdeathsig at the end of the *thread* that started it (PR_SET_PDEATHSIG in prctl(2)).
		// A locked thread ends when its goroutine does: here, after the child.
		runtime.LockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			c.err = c.Wait()
			close(c.ended)
		}
	}()
	return c, <-started
}

// wait waits for the child's end. Its error says what the exit status was if it was not 0.
func (c *child) wait() error {
	<-c.ended
	return c.err
}
