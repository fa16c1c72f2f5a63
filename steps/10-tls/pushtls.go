//go:build linux

package main

// How the descriptor gets across: pushed, as in step 04, whose push.go this stands in for under the
// same steal.go. What is new is a question before the connection is taken: does the kernel have its keys?

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

// fetchFD returns the descriptor that came with an offer, which becomes the caller's: of a socket that
// has the keys of a TLS session. Any other would be served as plain TCP, and its client read nonsense.
func fetchFD(_ *socket.Conn, _ message, fds []int) (int, error) {
	if len(fds) != offerFDs { // receiveMessage refuses more
		return -1, fmt.Errorf("an offer with %d descriptors, not %d", len(fds), offerFDs)
	}
	if err := isKernelTLS(fds[0]); err != nil {
		closeFDs(fds)
		return -1, err
	}
	return fds[0], nil
}
