//go:build linux

package main

import (
	"context"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
)

// How the descriptor gets from one process to the other: here the new one pulls it, with
// pidfd_getfd(2), out of the table of the old one. The offer names its number and nothing more. So
// it dies with the old process: what has not been fetched by then cannot be fetched any more.
//
// To copy, instead of push.go: this file with peer.go, pidfd.go and denied.go. The old process
// calls letFetch, and nothing in it closes a connection while it is being given.

// offerFDs is how many descriptors come with an offer.
const offerFDs = 0

// sendOffer sends an offer. Until it is answered, its sender keeps the connection open, and under
// the same number.
func sendOffer(ctx context.Context, control *socket.Conn, m message, _ syscall.Conn) error {
	return sendMessage(ctx, control, m)
}

// answerTime bounds the wait for the answer to an offer. A process that is told to end waits all the
// same, with the connection open: if it went, the number that it has offered would mean nothing.
func answerTime(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}

// fetchFD returns a duplicate of the descriptor that an offer names, which becomes the caller's.
// The number may mean something else by now, if the old process is ending or lies: the cookie
// in the offer tells.
func (t *taker) fetchFD(c content, _ []int) (int, error) {
	from, _, err := openPeer(t.control)
	if err != nil {
		return -1, err
	}
	defer from.Close()
	return from.fetch(c.FD)
}
