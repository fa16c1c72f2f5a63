//go:build linux

package main

// Who owns what one process offers another. To copy: this file, with fdpass.go, control.go and
// socket.go. It promises that what is offered is never both sides', and never nobody's while its
// owner lives, and that both sides know whose it is, whoever is killed and whenever.
//
// Two sides that can only send each other messages can never be sure that they agree: the last
// message may be lost. These two share a kernel. What it has queued stays readable after its
// sender died, and behind shutdown(2) no later message gets in. So:
//
//   - "taken" is the commit point. Once the new process has queued it, what was offered is the new
//     one's, although the old one may not know yet.
//   - An old process that tires of waiting says "withdraw", shuts its socket down, and reads its
//     queue to the end. Either "taken" was in time, or it will never come. Until "withdraw" is
//     queued, it does not touch what it has offered.
//   - A new process whose "taken" no longer gets in reads its queue to the end too. It finds
//     "withdraw"; or the old process died before it could take the offer back, and then nobody has
//     what was offered but us.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// message is one record on the control socket: JSON, so that strace shows it.
type message struct {
	Type    string `json:"type"` // offer, taken, refused or withdraw
	content        // offer: what is offered. Its fields stand beside these
	Reason  string `json:"reason,omitempty"` // refused, withdraw: in words
}

// maxRecord is how many bytes a message may have. A record is sent whole or not at all, and must fit
// the socket's send buffer, which by default has 208 KiB (net.core.wmem_default in socket(7)).
const maxRecord = 32 << 10

// errGone is that nobody is at the other end any more, and nothing is queued.
var errGone = errors.New("is gone")

// sendMessage sends a message, whole or not at all, with duplicates of fds.
func sendMessage(c *socket.Conn, m message, fds ...int) error {
	record, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(record) > maxRecord {
		return fmt.Errorf("a message of %d bytes, and a record holds %d", len(record), maxRecord)
	}
	err = sendFDs(c, record, fds...)
	// EPIPE after the other side has closed or called shutdown(2); ECONNRESET if it left something
	// unread; ECONNREFUSED on Linux 5.10, if the send meets the close.
	for _, errno := range []unix.Errno{unix.EPIPE, unix.ECONNRESET, unix.ECONNREFUSED} {
		if errors.Is(err, errno) {
			return errGone
		}
	}
	return err
}

// receiveMessage waits for a message with at most maxFDs descriptors, which become the caller's.
// Of a record that is no message the error wraps errBadRecord, and the conversation goes on.
func receiveMessage(c *socket.Conn, maxFDs int) (m message, fds []int, err error) {
	record := make([]byte, maxRecord)
	n, fds, err := receiveFDs(c, record, 0, maxFDs)
	if errors.Is(err, io.EOF) {
		err = errGone
	}
	if err != nil {
		return message{}, nil, err
	}
	if err := json.Unmarshal(record[:n], &m); err != nil {
		closeFDs(fds)
		return message{}, nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return m, fds, nil
}

// drain reads a queue to its end, and returns the message of that type, if there was one. So either
// side comes from doubt to certainty: nothing can be queued any more. It stops for nothing else,
// since half of the queue proves nothing.
func drain(c *socket.Conn, wanted string) (found *message) {
	for {
		m, fds, err := receiveMessage(c, scmMaxFD)
		closeFDs(fds)
		switch {
		case err == nil && m.Type == wanted:
			found = &m
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.SetReadDeadline(time.Time{})
		case err != nil && !errors.Is(err, errBadRecord):
			return found
		}
	}
}

// offer makes an offer with send, and waits for the answer, both within timeout. It returns nil when
// the other process, p, has taken what was offered. After an error that is still the caller's, and
// untouched: p has refused it, or did not answer, or is gone (errGone). over is that the
// conversation has ended with that, and c is to be closed.
func offer(c *socket.Conn, p peer, timeout time.Duration, send func() error) (over bool, err error) {
	c.SetDeadline(time.Now().Add(timeout)) // fails on what is closed, as the next call does
	if err := send(); err != nil {         // nothing was sent
		return errors.Is(err, errGone), fmt.Errorf("offer to %v: %w", p, err)
	}
	answer, _, err := receiveMessage(c, 0)
	switch {
	case err == nil && answer.Type == "taken":
		return false, nil
	case err == nil && answer.Type == "refused":
		return false, fmt.Errorf("%v refused: %q", p, answer.Reason)
	case errors.Is(err, errGone): // it has died or hung up, and "taken" was not in the queue
		return true, fmt.Errorf("%v %w", p, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return true, withdraw(c, fmt.Errorf("%v did not answer within %v", p, timeout))
	}
	// Whatever it said, it may still say "taken": only withdraw can tell.
	return true, withdraw(c, fmt.Errorf("%v broke the protocol: it answered %q (%v)", p, answer.Type, err))
}

// withdraw takes the open offer back, for a reason, and ends the conversation. It returns nil if
// the new process had taken what was offered in time, and the reason otherwise.
func withdraw(c *socket.Conn, reason error) error {
	// In this order: a new process that finds the socket shut must find the word before it, or it
	// would think that nobody else has what was offered. So this waits for room as long as it must.
	c.SetDeadline(time.Time{})
	m := message{Type: "withdraw", Reason: reason.Error()}
	for err := sendMessage(c, m); err != nil && !errors.Is(err, errGone); err = sendMessage(c, m) {
		log.Printf("withdraw: %v; trying again, as nothing else is safe", err) // ENOBUFS, say
		time.Sleep(time.Second)
	}
	c.Shutdown(unix.SHUT_RDWR) // fails if the other side has hung up: the queue ends all the same
	if drain(c, "taken") != nil {
		return nil
	}
	return reason
}

// commit says "taken", before this process uses what it was offered. After nil that is its own, and
// nobody else's. After an error it never will be, and the conversation is over.
func commit(c *socket.Conn) error {
	err := sendMessage(c, message{Type: "taken"})
	if errors.Is(err, errGone) {
		last := drain(c, "withdraw")
		if last == nil { // it has died with the offer open, and nobody has it but us
			return nil
		}
		err = last.gaveUp() // it has taken it back
	}
	return err
}

func (m message) gaveUp() error { return fmt.Errorf("gave up on this process: %q", m.Reason) }
