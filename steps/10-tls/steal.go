//go:build linux

package main

// How a live TCP connection changes its process, by the rules of protocol.go. To copy: this file,
// protocol.go, push.go, fdpass.go, control.go and socket.go. It promises that a connection is served by
// one process at any time, with every byte that its client has sent.

import (
	"errors"
	"fmt"
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

// content is what an offer says of the connection.
type content struct {
	FD     int    `json:"fd,omitempty"`     // the descriptor's number in the old process
	Cookie uint64 `json:"cookie,omitempty"` // the socket's SO_COOKIE
	State  state  `json:"state,omitzero"`
}

// maxUnread is how many bytes a session reads ahead. In JSON they take a third more, and a record
// must hold them (maxRecord).
const maxUnread = 16 << 10

var errNobodyWaits = errors.New("no new process is waiting")

// giver is the old process's side. It gives connections to the first process in line. Who is in
// line, the kernel keeps: a process that connects waits in the accept queue, and is accepted when
// somebody types STEAL. So nobody need be greeted, counted or refused for coming second, and one
// that connects and says nothing keeps the others out for one time-out at most.
type giver struct {
	control *controlSocket // its accept queue is the line of waiting processes. The maker closes it
	timeout time.Duration  // how long an offer may stay unanswered: more than 0

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
	fd, cookie, err := identify(c)
	if err != nil {
		return err
	}
	m := message{Type: "offer", content: content{FD: fd, Cookie: cookie, State: s}}
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if g.first == nil {
			if err := g.accept(); err != nil {
				return err
			}
		}
		over, err := offer(g.first, g.peer, g.timeout, func() error { return sendOffer(g.first, m, c) })
		if over {
			g.drop()
		}
		if !errors.Is(err, errGone) { // if it is, let the next in line have it
			return err
		}
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
		if err := commit(from); err != nil {
			c.Close()
			return nil, state{}, err
		}
		return c, m.State, nil
	}
}

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
