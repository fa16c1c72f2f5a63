//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A client's connection, and all that user space holds of it. To copy: this file, standstill.go and
// borrow.go. Nothing of a connection is in local variables of the goroutine that serves it, so
// it can be stopped between any two system calls, and go on elsewhere.

const (
	// bufferSize bounds what one connection can make this process remember, in each direction.
	// A line longer than this is echoed in pieces as it arrives.
	bufferSize = 16 << 10

	// firstSize is what a connection begins with. Most are idle, and there may be many.
	firstSize = 512
)

// stream is a connected socket: *net.TCPConn if this process has accepted it, *os.File if another
// one has.
type stream interface {
	io.ReadWriteCloser
	syscall.Conn
	SetDeadline(time.Time) error
}

// session is a connection that is served here. Whoever serves it owns it, and closes it.
type session struct {
	stream
	state
	cookie uint64 // the socket's SO_COOKIE

	moved bool                       // another process owns it: nothing may be done here but close(2)
	stays atomic.Bool                // marked by its client: it is not to be moved
	ended chan struct{}              // closed when serve has returned
	asked atomic.Pointer[standstill] // to stand still; nil if nobody has asked
}

// state is what has to travel with the socket.
type state struct {
	In     []byte `json:"in,omitempty"`     // read, and not yet answered
	Out    []byte `json:"out,omitempty"`    // an answer that the kernel has not taken yet
	Ended  bool   `json:"ended,omitempty"`  // end-of-file has been read
	Inside bool   `json:"inside,omitempty"` // what comes next continues a line
}

// empty reports whether there is nothing to travel: the client waits for no answer.
func (s *state) empty() bool { return len(s.In)+len(s.Out) == 0 && !s.Ended && !s.Inside }

func newSession(c stream, cookie uint64, s state) *session {
	return &session{stream: c, cookie: cookie, state: s, ended: make(chan struct{})}
}

// Close ends the connection, unless another process owns it. close(2) alone would not end it as long
// as another process has a descriptor, such as one that was offered the connection in vain: the
// client would wait for its end-of-file. shutdown(2) ends it for everybody.
func (s *session) Close() error {
	if !s.moved {
		_ = borrow(s, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }) // its client may have ended it
	}
	return s.stream.Close()
}

// echo sends every line back, and shows it, until everything up to end-of-file has been
// answered. If it is interrupted by a deadline, it can be called again: no byte is lost.
func (s *session) echo(show func(line []byte)) error {
	for {
		if err := s.write(); err != nil {
			return err
		}
		if s.answer(show) {
			continue
		}
		if s.Ended {
			return nil
		}
		if err := s.read(); err != nil {
			return err
		}
	}
}

// write hands the answer to the kernel. What it did not take is kept.
func (s *session) write() error {
	if len(s.Out) == 0 {
		return nil
	}
	n, err := s.Write(s.Out)
	s.Out = s.Out[:copy(s.Out, s.Out[n:])]
	return err
}

// read waits for more of what the client sends. It is called when nothing is left to be written:
// a client that does not read is not listened to either.
func (s *session) read() error {
	if len(s.In) == cap(s.In) {
		s.In = append(make([]byte, 0, max(firstSize, min(2*cap(s.In), bufferSize))), s.In...)
	}
	n, err := s.Read(s.In[len(s.In):cap(s.In)])
	s.In = s.In[:len(s.In)+n]
	if errors.Is(err, io.EOF) {
		s.Ended = true
		return nil
	}
	return err
}

// answer turns the lines that have been read into the answer to be written, and reports whether
// there were any.
func (s *session) answer(show func(line []byte)) (some bool) {
	rest := s.In
	for line := s.next(rest); len(line) > 0; line = s.next(rest) {
		rest = rest[len(line):]
		whole := !s.Inside
		s.Inside = line[len(line)-1] != '\n'
		if whole && !s.Inside && isStay(line) {
			s.stays.Store(true)
			s.Out = fmt.Appendf(s.Out, "* stays with pid %d\n", os.Getpid())
			continue
		}
		show(line)
		s.Out = append(s.Out, line...)
	}
	some = len(rest) < len(s.In)
	s.In = s.In[:copy(s.In, rest)]
	return some
}

// next returns the line that in begins with: up to its newline, or the piece of it that fills
// the buffer or ends with the connection. It is empty if there is more to come first.
func (s *session) next(in []byte) []byte {
	if end := bytes.IndexByte(in, '\n'); end >= 0 {
		return in[:end+1]
	}
	if s.Ended || len(in) >= bufferSize {
		return in
	}
	return nil
}

// staysHere reports whether the client has marked its connection.
func (s *session) staysHere() bool { return s.stays.Load() }

// isStay reports whether a line marks its connection as one that is not to be moved.
func isStay(line []byte) bool {
	word := bytes.Trim(line, " \t\r\n")
	// The length keeps out what folds to these letters, and is none of them, such as U+017F.
	return len(word) == len("STAY") && bytes.EqualFold(word, []byte("STAY"))
}

// settle answers what has arrived, waits for nothing more, and returns when the kernel has it all
// or the deadline is over. Unread bytes in a socket would make its close a reset, which takes
// away from the client what it has not read yet (RFC 2525, 2.17).
func (s *session) settle(show func(line []byte), deadline time.Time) error {
	if err := s.SetDeadline(deadline); err != nil {
		return err
	}
	for more := true; more || len(s.Out) > 0; {
		if err := s.write(); err != nil {
			return err
		}
		more = !s.Ended && s.arrived()
		if more {
			if err := s.read(); err != nil {
				return err
			}
		} else {
			s.Ended = true // so that an unfinished line is answered too
		}
		s.answer(show)
	}
	return nil
}

// arrived reports whether something can be read without waiting for it. The client's end-of-file
// and a reset are something.
func (s *session) arrived() bool {
	var fds [1]unix.PollFd
	err := borrow(s, func(fd int) (err error) {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		_, err = unix.Poll(fds[:], 0)
		return err
	})
	return err == nil && fds[0].Revents != 0
}
