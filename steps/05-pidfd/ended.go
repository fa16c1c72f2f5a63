//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"
	"unsafe"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// A pidfd becomes readable when its process ends. So a goroutine waits for that as it waits for
// a socket, in Go's poller, and no pid can come to mean another process meanwhile.

// reapTime is how long a process that has ended may stay a zombie before we stop asking how.
const reapTime = time.Second

// reportEnd logs how the process at the other end of control ends, the moment it does, unless ctx
// ends before. Then it closes ended.
func reportEnd(ctx context.Context, control *socket.Conn) (ended <-chan struct{}, err error) {
	t, how, err := openPeer(control)
	if err != nil {
		return nil, err
	}
	pidfd, err := socket.New(t.pidfd, "pidfd") // it is no socket, but can be polled like one
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	log.Printf("pidfd of pid %d %s", t.pid, how)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer closeQuietly(pidfd)
		if how, err := howEnded(ctx, pidfd); err == nil {
			log.Printf("pid %d %s", t.pid, how)
		}
	}()
	return done, nil
}

// howEnded waits until the process behind pidfd has ended, and says how in words. Its error is
// ctx's, or that pidfd is closed.
func howEnded(ctx context.Context, pidfd *socket.Conn) (string, error) {
	err := pidfd.ReadFunc(ctx, "poll", func(fd int) error {
		if polled(fd, unix.POLLIN) == 0 {
			return unix.EAGAIN
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	status, err := exitStatus(ctx, pidfd)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "ended, and its parent has not asked how yet", nil
	case err != nil:
		return fmt.Sprintf("ended, and how is its parent's to know: %v (it takes Linux 6.15, and the same pid namespace)", err), nil
	case status.Signaled():
		return fmt.Sprintf("was killed by signal %d %s", status.Signal(), unix.SignalName(status.Signal())), nil
	}
	return fmt.Sprintf("ended with exit status %d", status.ExitStatus()), nil
}

// exitStatus waits until the parent of a process that has ended has waited for it. From then on
// the kernel tells others as well, if they had a pidfd before (PIDFD_GET_INFO).
func exitStatus(ctx context.Context, pidfd *socket.Conn) (unix.WaitStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, reapTime)
	defer cancel()
	var info unix.PidfdInfo
	err := pidfd.ReadFunc(ctx, "ioctl PIDFD_GET_INFO", func(fd int) error {
		for try := 0; ; try++ {
			reaped := polled(fd, unix.POLLIN)&unix.POLLHUP != 0
			info = unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
			switch {
			case errno == unix.ESRCH && !reaped && try == 0:
				continue // it may have been waited for just now: neither process nor status was found
			case errno != 0:
				return errno
			case info.Mask&unix.PIDFD_INFO_EXIT != 0:
				return nil
			case reaped:
				return unix.ENODATA // this kernel has the call, and not this answer
			}
			return unix.EAGAIN
		}
	})
	return unix.WaitStatus(uint32(info.Exit_code)), err
}
