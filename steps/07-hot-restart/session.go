//go:build linux

package main

// One client's connection, which can be stopped at any moment and go on in another process. To copy:
// this file and socket.go, and put your own protocol in the place of echo, read and answer.
//
// What the other files call:
//
//	newSession    makes one of a connection, and of what another process has known of it
//	serve         answers its client, until that has nothing more to say or the session stands still.
//	              Then its goroutine ends, and everything is in the struct: to go on is to serve again
//	halt          asks it to stand still; release takes that back, if it does not stand yet
//	end, leave    close it: for everybody, or for this process alone
//
// All that the next process must know is in state. Nothing may be in a local variable when a system
// call returns os.ErrDeadlineExceeded, as that is where a session stops.
//
// Deadlines belong to the standstill. A session is stopped by one that is over: it ends the read or
// write in which its goroutine waits, and the next one too, and says exactly how far it came. A
// time-out of your own, behind which the session ends, goes through setDeadline, and nothing else sets one: so it can neither
// lose a request to stand still nor be lost in one. It does not travel: if it must, put its end into
// state, and such a session is not silent.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connected socket: accepted (*net.TCPConn) or taken over (*os.File).
type conn interface {
	io.WriteCloser
	syscall.Conn
	SetDeadline(time.Time) error
}

// state is what has to travel with the socket. Add here what your own server must know to go on, in
// exported fields: JSON leaves out the others without a word.
type state struct {
	In     []byte `json:"in,omitempty"`     // read, and not yet answered
	Out    []byte `json:"out,omitempty"`    // an answer that the kernel has not accepted yet
	Ended  bool   `json:"ended,omitempty"`  // end-of-file has been read
	Inside bool   `json:"inside,omitempty"` // what comes next continues a line
}

// session is a connection. Its fields belong to the goroutine that serves it, or to whoever has made
// it stand still, but for those that say otherwise.
type session struct {
	state
	conn   conn            // nil as long as the session is silent
	raw    syscall.RawConn // conn's
	fd     int             // its number; conn's to close, if there is one
	cookie uint64          // the socket's SO_COOKIE

	over  bool      // serve has returned because the client has nothing more to say: changes under mu
	stood time.Time // when serve has returned

	stays atomic.Bool  // the client has said STAY: it is not to be moved
	heard atomic.Int64 // when the client has last said something: Unix time in ns

	mu       sync.Mutex
	asked    chan<- *session // where to go when it stands still; nil: it has not been asked to
	deadline time.Time       // its own; zero: none
}

// newSession makes a session of a connection, which stays the caller's after an error.
func newSession(c conn) (s *session, err error) {
	s = &session{conn: c}
	if s.fd, s.cookie, err = identify(c); err == nil {
		s.raw, err = c.SyscallConn()
	}
	return s, err
}

// open makes a session ready to be served that another process has had.
func (s *session) open() (err error) {
	if s.conn == nil {
		// As cheap as it gets: fcntl(2), to see that it is non-blocking, and epoll_ctl(2). The socket's
		// options stay as they are; net.FileConn would change TCP_NODELAY and the keep-alive times.
		f := os.NewFile(uintptr(s.fd), "tcp")
		s.conn = f
		if s.raw, err = f.SyscallConn(); err == nil {
			err = f.SetDeadline(time.Time{}) // whether the poller has it
		}
	}
	return err
}

// isSilent reports whether there is nothing to be done before the client says something.
func (s *session) isSilent() bool { return s.bytes() == 0 && !s.Ended }

// bytes is how many of them must travel with the socket.
func (s *session) bytes() int { return len(s.In) + len(s.Out) }

// forget gives back the buffers of one that has been moved.
func (s *session) forget() {
	s.In, s.Out = shrink(s.In, len(s.In)), shrink(s.Out, len(s.Out))
}

// end closes the connection for everybody. close(2) alone would not end it as long as another process
// has a descriptor, such as one that was offered it in vain.
func (s *session) end() {
	unix.Shutdown(s.fd, unix.SHUT_RDWR) // fails if the client has ended it
	s.leave()
}

// leave closes only this process's descriptor, as the connection is another one's now.
func (s *session) leave() {
	if s.conn == nil {
		unix.Close(s.fd)
	} else {
		s.conn.Close()
	}
}

// past is a deadline that is over. The zero Time would be none.
var past = time.Unix(1, 0)

// halt asks the session to stand still, and to come to the channel then, which must have room. It
// comes there too if it has ended, or ends first. Until it has come or was released, it cannot be asked again.
func (s *session) halt(to chan<- *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over { // nobody else would say so
		to <- s
		return
	}
	s.asked = to
	s.conn.SetDeadline(past) // fails if it is just ending, and so it comes
}

// release takes that request back, and reports whether there was one, and the session goes on. If not,
// it has come to the channel, or will at once.
func (s *session) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == nil {
		return false
	}
	s.asked = nil
	s.conn.SetDeadline(s.deadline)
	return true
}

// setDeadline sets the session's own deadline: for its next read and write, and all those after.
func (s *session) setDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	if s.asked == nil {
		s.conn.SetDeadline(t) // fails as the next read or write does
	}
}

// stop is called when echo has returned, and reports whether that is the end of serve, and who has
// asked for it. It is not the end if somebody has asked, and thought better of it.
func (s *session) stop(err error) (to chan<- *session, stopped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := !s.deadline.IsZero() && !time.Now().Before(s.deadline)
	s.over = !errors.Is(err, os.ErrDeadlineExceeded) || s.asked == nil && late
	to, s.asked = s.asked, nil
	return to, s.over || to != nil
}

// serve answers the client, until it has nothing more to say (over), or the session stands still.
// Afterwards the session goes to the channel that is returned, if there is one.
func (s *session) serve(lines *atomic.Uint64) chan<- *session {
	s.setDeadline(s.deadline) // not the past one, by which it was stopped
	for {
		if to, stopped := s.stop(s.echo(lines)); stopped {
			s.stood = time.Now()
			return to
		}
	}
}

// echo sends every line back, until everything up to end-of-file has been answered.
func (s *session) echo(lines *atomic.Uint64) error {
	for {
		if err := s.write(); err != nil {
			return err
		}
		if s.answer(lines) {
			continue
		}
		if s.Ended {
			return nil
		}
		if err := s.read(); err != nil { // a client that does not read is not listened to either
			return err
		}
	}
}

// bufferSize bounds what a client can make this process remember. A longer line is echoed in pieces.
const bufferSize = 16 << 10

// buffers are those that hold nothing. A session has one only while it holds something: of ten
// thousand clients, most are silent.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func newBuffer() []byte { return buffers.Get().(*[bufferSize]byte)[:0] }

// shrink removes the first n bytes of a buffer, and the buffer if it is empty.
func shrink(buffer []byte, n int) []byte {
	buffer = buffer[:copy(buffer, buffer[n:])]
	if len(buffer) > 0 {
		return buffer
	}
	if cap(buffer) == bufferSize {
		buffers.Put((*[bufferSize]byte)(buffer[:bufferSize]))
	}
	return nil
}

// write hands the answer to the kernel. What that does not accept is kept.
func (s *session) write() error {
	if len(s.Out) == 0 {
		return nil
	}
	n, err := s.conn.Write(s.Out)
	s.Out = shrink(s.Out, n)
	return err
}

// read waits for more of what the client sends.
func (s *session) read() error {
	if len(s.In) >= bufferSize {
		err := errors.New("a client is cut off: its buffer is full, and answer takes nothing of it")
		log.Print(err)
		return err
	}
	var failed error
	err := s.raw.Read(func(fd uintptr) (done bool) {
		if s.In == nil {
			s.In = newBuffer()
		}
		var n int
		for failed = unix.EINTR; failed == unix.EINTR; { // signal(7)
			n, failed = unix.Read(int(fd), s.In[len(s.In):cap(s.In)])
		}
		if n > 0 {
			s.In = s.In[:len(s.In)+n]
			s.heard.Store(time.Now().UnixNano())
			return true
		}
		s.In = shrink(s.In, 0) // not to be kept while nothing comes
		s.Ended = n == 0
		return failed != unix.EAGAIN // then the poller calls again when there is something
	})
	if err == nil {
		err = os.NewSyscallError("read", failed)
	}
	return err
}

// answer makes the answer to the lines that have been read, and reports whether there were any.
func (s *session) answer(lines *atomic.Uint64) bool {
	read := s.In
	for line := s.next(read); len(line) > 0; line = s.next(read) {
		read = read[len(line):]
		begins := !s.Inside
		s.Inside = line[len(line)-1] != '\n'
		if !s.Inside {
			lines.Add(1)
		}
		if s.Out == nil {
			s.Out = newBuffer()
		}
		if begins && isStay(line) {
			s.stays.Store(true)
			s.Out = fmt.Appendf(s.Out, "* stays with pid %d\n", os.Getpid())
		} else {
			s.Out = append(s.Out, line...) // binary-exact: no byte is taken for text
		}
	}
	s.In = shrink(s.In, len(s.In)-len(read))
	return len(s.Out) > 0
}

// next returns the line that in begins with, or the piece of one that fills the buffer or ends with
// the connection. It is empty if there is more to come first.
func (s *session) next(in []byte) []byte {
	if end := bytes.IndexByte(in, '\n'); end >= 0 {
		return in[:end+1]
	}
	if s.Ended || len(in) >= bufferSize {
		return in
	}
	return nil
}

// isStay reports whether a line marks its connection as one that cannot move: here in the place of
// TLS, or of a library that has the socket.
func isStay(line []byte) bool {
	word := bytes.Trim(line, " \t\r\n")
	// The length keeps out what folds to these letters and is none of them, such as U+017F.
	return len(word) == len("STAY") && bytes.EqualFold(word, []byte("STAY"))
}
