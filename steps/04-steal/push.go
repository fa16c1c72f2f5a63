//go:build linux

package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
)

// How the descriptor gets from one process to the other: here the old one pushes it, as
// SCM_RIGHTS in the offer itself. So it survives its sender's death: once the offer is in the
// queue, the socket has a descriptor in flight that no process's end can close.

// offerFDs is how many descriptors come with an offer.
const offerFDs = 1

// sendOffer sends an offer with a duplicate of conn's descriptor.
func sendOffer(ctx context.Context, control *socket.Conn, m message, conn syscall.Conn) error {
	return borrow(conn, func(fd int) error { return sendMessage(ctx, control, m, fd) })
}

// answerTime bounds the wait for the answer to an offer. A process that is told to end need not
// wait: what it has offered is in the queue, and the new process can take it without it.
func answerTime(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, timeout)
}

// fetchFD returns the descriptor of an offer, which becomes the caller's: the one that came along.
// The number in the message means nothing in this process.
func (t *taker) fetchFD(_ content, fds []int) (int, error) {
	if len(fds) != offerFDs {
		return -1, fmt.Errorf("%w: %d, not %d", errMissingFDs, len(fds), offerFDs)
	}
	return fds[0], nil
}
