//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// shortageWait is how long acceptAll leaves clients in the accept queue when the kernel has
// no descriptor to give.
const shortageWait = 50 * time.Millisecond

// listen opens a TCP listener. The caller closes it.
func listen(addr string) (*net.TCPListener, error) {
	tcpAddr, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-addr %s: %w", addr, err)
	}
	l, err := net.ListenTCP("tcp", tcpAddr)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%w: stop the process that has it (ss -ltnp shows it), or choose another port with -addr", err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w: ports below 1024 need CAP_NET_BIND_SERVICE; choose another with -addr", err)
	case err != nil:
		return nil, err
	}
	return l, nil
}

// acceptAll gives every client of l to handle, in a goroutine of its own, until ctx ends. Then
// it closes the listener and the connections, waits for their handlers, and returns nil.
// It owns l and every connection: a handler may close its own early, but need not.
func acceptAll(ctx context.Context, l *net.TCPListener, handle func(*net.TCPConn)) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer closeQuietly(l)
	context.AfterFunc(ctx, func() { closeQuietly(l) })

	short := false
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			short = false
			handlers.Go(func() {
				defer closeQuietly(c)
				stop := context.AfterFunc(ctx, func() { closeQuietly(c) })
				defer stop()
				handle(c)
			})
		case ctx.Err() != nil:
			return nil
		case isShortage(err):
			// accept(2) failed, but the client stays in the accept queue. The kernel
			// tells nobody when a descriptor becomes free, so look again in a while.
			if !short {
				log.Printf("%v: clients wait in the accept queue until there is room", err)
			}
			short = true
			pause(ctx, shortageWait)
		default:
			return err
		}
	}
}

// isShortage reports whether accept(2) failed for want of something that will be free again:
// descriptors of this process, files of the whole system, memory.
func isShortage(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// closeQuietly closes what may be closed already: the signal and the end of the work can
// come in either order, and the second close has nothing to report.
func closeQuietly(c interface{ Close() error }) { _ = c.Close() }
