//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"log"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// shortageWait is how long acceptAll leaves clients in the accept queue when the kernel
	// has no descriptor to give.
	shortageWait = 50 * time.Millisecond

	// shortageQuiet is how long there must have been descriptors before the lack of them is
	// news again.
	shortageQuiet = time.Minute
)

// acceptAll gives everyone who connects to handle, in a goroutine of its own, until ctx ends, and
// then returns nil. In the end it closes the listener and waits for the handlers, which must end
// with ctx too. It closes each connection when its handler returns.
func acceptAll[C io.Closer](ctx context.Context, listener io.Closer, accept func() (C, error), handle func(C)) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer closeQuietly(listener) // whatever ends the loop; and if it is ctx, that must end accept:
	defer context.AfterFunc(ctx, func() { closeQuietly(listener) })()

	var short time.Time // when descriptors last ran out
	for {
		c, err := accept()
		switch {
		case err == nil:
			handlers.Go(func() {
				defer closeQuietly(c)
				handle(c)
			})
		case ctx.Err() != nil:
			return nil
		case isShortage(err):
			// accept(2) failed, but the client stays in the accept queue. The kernel
			// tells nobody when a descriptor becomes free, so look again in a while.
			if time.Since(short) > shortageQuiet {
				log.Printf("%v: clients wait in the accept queue until there is room", err)
			}
			short = time.Now()
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
func closeQuietly(c io.Closer) { _ = c.Close() }
