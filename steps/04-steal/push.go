//go:build linux

package main

// How the descriptor gets across: here the old process pushes it, as SCM_RIGHTS in the offer. So
// it survives its sender: what is in the queue, no process's death can close. Step 05 has pull.go
// in the place of this file, under the same steal.go.

import (
	"fmt"
	"syscall"

	"github.com/mdlayher/socket"
)

// offerFDs is how many descriptors come with an offer.
const offerFDs = 1

// sendOffer sends an offer with a duplicate of c's descriptor. After an error nothing was sent.
func sendOffer(to *socket.Conn, m message, c syscall.Conn) error {
	return borrow(c, func(fd int) error { return sendMessage(to, m, fd) })
}

// fetchFD returns the descriptor that an offer is about: the one that came with it. It is the
// caller's. The number in the message means nothing in this process.
func fetchFD(_ *socket.Conn, _ message, fds []int) (int, error) {
	if len(fds) != offerFDs { // receiveMessage refuses more
		return -1, fmt.Errorf("an offer with %d descriptors, not %d", len(fds), offerFDs)
	}
	return fds[0], nil
}
