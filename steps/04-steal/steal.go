//go:build linux

package main

// The protocol by which a live TCP connection changes its process. To copy: this file with push.go,
// fdpass.go, control.go and socket.go. It promises that a connection is never served by two
// processes, never by none while its owner lives, and that both know who that is, whoever is
// killed and whenever.
//
// Two sides that can only send each other messages can never be sure that they agree: the last
// message may be lost. These two share a kernel. What it has queued stays readable after its
// sender died, and behind shutdown(2) no later message gets in. So:
//
//   - "taken" is the commit point. Once the new process has queued it, the connection is the new
//     one's, although the old one may not know yet.
//   - An old process that tires of waiting says "withdraw", shuts its socket down, and reads its
//     queue to the end. Either "taken" was in time, or it will never come. Until "withdraw" is
//     queued, it does not touch the connection.
//   - A new process whose "taken" no longer gets in reads its queue to the end too. It finds
//     "withdraw"; or the old process died before it could take the connection back, and then
//     nobody serves it but us.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// state is what this process knows of a connection and the next one needs: the socket is not all
// of it. Add here what your own server must know to go on, in exported fields: JSON leaves out the
// others without a word. Bytes that a client sent are []byte: JSON mends a string that is not UTF-8.
type state struct {
	Remote string `json:"remote,omitempty"` // the client's address, and ours: for the log
	Local  string `json:"local,omitempty"`
	Unread []byte `json:"unread,omitempty"` // read from the socket, and not yet answered
}

// message is one record on the control socket: JSON, so that strace shows it.
type message struct {
	Type   string `json:"type"`             // offer, taken, refused or withdraw
	FD     int    `json:"fd,omitempty"`     // offer: the descriptor's number in the old process
	Cookie uint64 `json:"cookie,omitempty"` // offer: the socket's SO_COOKIE
	State  state  `json:"state,omitzero"`   // offer
	Reason string `json:"reason,omitempty"` // refused, withdraw: in words
}

// A record is sent whole or not at all, and must fit the socket's send buffer, which by default has
// 208 KiB (net.core.wmem_default in socket(7)).
const (
	maxUnread = 16 << 10 // bytes that a session reads ahead; in JSON they take a third more
	maxRecord = 32 << 10 // bytes of a record
)

var (
	errGone        = errors.New("is gone") // nobody is at the other end any more, and nothing is queued
	errNobodyWaits = errors.New("no new process is waiting")
)

// giver is the old process's side. It gives connections to the first process in line. Who is in
// line, the kernel keeps: a process that connects waits in the accept queue, and is accepted when
// somebody types STEAL. So nobody need be greeted, counted or refused for coming second, and one
// that connects and says nothing keeps the others out for one time-out at most.
type giver struct {
	control *socket.Conn  // listens; its accept queue is the line of waiting processes. The maker closes it
	timeout time.Duration // how long an offer may stay unanswered: more than 0

	mu    sync.Mutex   // held for a whole offer, until its answer: one at a time
	first *socket.Conn // to the first in line, once accepted; nil: nobody is
	peer  peer         // who that is
}

// give offers c to the first process in line, and waits for the answer. Nothing may read, write or
// close c meanwhile. Any number of goroutines may call it, for different connections; they wait for
// each other.
//
// After nil the connection is the new process's: close c, and never call shutdown(2), read or
// write. After an error (errNobodyWaits, or a reason in words) it is still the caller's, untouched,
// and can be served on. If it is to end instead, call shutdown(2) before close(2): a process that was
// offered it in vain may still have a descriptor of it.
//
// An offer with more than 24 000 bytes of s.Unread fits no record, and is not sent.
func (g *giver) give(c syscall.Conn, s state) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if g.first == nil {
			if err := g.accept(); err != nil {
				return err
			}
		}
		err := g.offer(c, s)
		if !errors.Is(err, errGone) {
			return err
		}
		g.drop() // and let the next in line have it
	}
}

// accept accepts the next process in line, if there is one, and it may be here.
func (g *giver) accept() error {
	for {
		fd := -1
		err := borrow(g.control, func(listener int) (err error) {
			fd, _, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC) // does not wait
			return os.NewSyscallError("accept4", err)
		})
		if errors.Is(err, unix.EAGAIN) {
			return errNobodyWaits
		}
		if err == nil {
			g.first, err = socket.New(fd, "control")
		}
		if err != nil {
			return err
		}
		g.peer, err = peerOf(g.first)
		if err == nil {
			return nil
		}
		log.Print(err)
		sendMessage(g.first, message{Type: "refused", Reason: err.Error()}) // fails if it has left
		g.drop()
	}
}

// drop ends the conversation with the first in line.
func (g *giver) drop() {
	g.first.Close()
	g.first = nil
}

// offer makes one offer to the first in line. Its error is errGone if that is no more.
func (g *giver) offer(c syscall.Conn, s state) error {
	fd, cookie, err := identify(c)
	if err != nil {
		return err
	}
	g.first.SetDeadline(time.Now().Add(g.timeout)) // fails on what is closed, as the next call does
	m := message{Type: "offer", FD: fd, Cookie: cookie, State: s}
	if err := sendOffer(g.first, m, c); err != nil { // nothing was sent
		return fmt.Errorf("offer to %v: %w", g.peer, err)
	}
	answer, _, err := receiveMessage(g.first, 0)
	switch {
	case err == nil && answer.Type == "taken":
		return nil
	case err == nil && answer.Type == "refused":
		return fmt.Errorf("%v refused: %q", g.peer, answer.Reason)
	case errors.Is(err, errGone): // it has died or hung up, and "taken" was not in the queue
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return g.withdraw(fmt.Errorf("%v did not answer within %v", g.peer, g.timeout))
	}
	// Whatever it said, it may still say "taken": only withdraw can tell.
	return g.withdraw(fmt.Errorf("%v broke the protocol: it answered %q (%v)", g.peer, answer.Type, err))
}

// withdraw takes the open offer back, for a reason, and ends the conversation. It returns nil if
// the new process had taken the connection in time, and the reason otherwise.
func (g *giver) withdraw(reason error) error {
	// In this order: a new process that finds the socket shut must find the word before it, or it
	// would take the connection for an orphan. So this waits for room as long as it must.
	g.first.SetDeadline(time.Time{})
	m := message{Type: "withdraw", Reason: reason.Error()}
	for err := sendMessage(g.first, m); err != nil && !errors.Is(err, errGone); err = sendMessage(g.first, m) {
		log.Printf("withdraw: %v; trying again, as nothing else is safe", err) // ENOBUFS, say
		time.Sleep(time.Second)
	}
	g.first.Shutdown(unix.SHUT_RDWR) // fails if the other side has hung up: the queue ends all the same
	taken := drain(g.first, "taken")
	g.drop()
	if taken != nil {
		return nil
	}
	return reason
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

// take waits for the next connection that is this process's to serve, and in the end to shut down and
// close. An offer that is not what it says is refused. One goroutine at a time may call it, and nobody
// else may read from, write to or close the connection meanwhile. A read deadline interrupts it, and
// it can be called again.
//
// After an error nothing more comes from this old process: it is gone (errGone), or the error says
// why it gave up on this one, which may stand in line again with a new dialControl. What has been
// taken before stays taken.
func take(from *socket.Conn) (*socket.Conn, state, error) {
	for {
		m, fds, err := receiveMessage(from, offerFDs)
		switch { // a bad record is refused below, like an offer that is not true
		case err != nil && !errors.Is(err, errBadRecord):
			return nil, state{}, err
		case m.Type == "withdraw", m.Type == "refused":
			closeFDs(fds)
			return nil, state{}, m.gaveUp()
		}
		var c *socket.Conn
		if err == nil {
			c, err = adopt(from, m, fds)
		}
		if err != nil {
			log.Printf("refused an offer: %v", err)
			sendMessage(from, message{Type: "refused", Reason: err.Error()}) // fails as the next receipt does
			continue
		}
		// The commit point, before the first byte is read from c or written to it.
		err = sendMessage(from, message{Type: "taken"})
		if errors.Is(err, errGone) {
			last := drain(from, "withdraw")
			if last == nil { // it has died with the offer open, and nobody serves c but us
				return c, m.State, nil
			}
			err = last.gaveUp() // it serves c itself
		}
		if err != nil {
			c.Close()
			return nil, state{}, err
		}
		return c, m.State, nil
	}
}

func (m message) gaveUp() error { return fmt.Errorf("gave up on this process: %q", m.Reason) }

// adopt makes a connection of an offer and its descriptors, which it owns, if the offer is true: a
// connected TCP socket, and by its cookie the very one. A number from another process's table
// proves nothing; the cookie is what both processes can see.
func adopt(from *socket.Conn, m message, fds []int) (*socket.Conn, error) {
	if m.Type != "offer" {
		closeFDs(fds)
		return nil, fmt.Errorf("unexpected message %q", m.Type)
	}
	fd, err := fetchFD(from, m, fds)
	if err != nil {
		return nil, err
	}
	if err := verify(fd, m.Cookie); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// The socket's options stay as they are. net.FileConn would change TCP_NODELAY and the
	// keep-alive times.
	return socket.New(fd, "tcp")
}

// verify checks that fd, which stays the caller's, is a connected TCP socket with that cookie.
func verify(fd int, cookie uint64) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP { // Go listens for both
		return fmt.Errorf("not a TCP socket: SO_PROTOCOL is %d (%v)", protocol, err)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return fmt.Errorf("not connected: %w", os.NewSyscallError("getpeername", err))
	}
	got, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil || got != cookie {
		return fmt.Errorf("another socket: its cookie is %d, the offer says %d (%v)", got, cookie, err)
	}
	return nil
}

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
