//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"
)

// server is one generation: all that one process serves, from the moment it has it until the next
// process does.
type server struct {
	asked   []string // the addresses to serve; if there are none, those of the process before
	path    string   // of the control socket
	stdout  io.Writer
	batch   int           // how many connections stand still and move together
	drain   time.Duration // how long the old process serves what cannot be moved
	timeout time.Duration // how long the new process may take to answer an offer

	control   *meetingPoint
	listeners []*listener
	surplus   []*listener // of the process before, and not asked for: closed when they are ours
	opened    []*listener // asked for, and not in use yet
	sessions  sessions
	counted   counters
	spare     spare

	accepting context.Context // accept loops end with it
	stop      context.CancelFunc
	serving   sync.WaitGroup // accept loops and clients
	failed    chan error     // what ended an accept loop before its time
	succeeded chan struct{}  // closed when the next process has everything

	greeting sync.Mutex // one process at a time
	moving   sync.Mutex // held while another process takes over
	mu       sync.Mutex // of next, and of listeners while a signal may ask for them
	next     *giver     // to the process that is taking over; nil if none is
}

// run serves until ctx ends, or until the next process has taken over.
func (s *server) run(ctx context.Context) error {
	s.failed, s.succeeded = make(chan error, 1), make(chan struct{})
	s.accepting, s.stop = context.WithCancel(context.Background())
	defer s.stop()
	defer s.watchSignals()()

	if err := s.spare.keep(); err != nil {
		log.Printf("no descriptors to spare for the next takeover: %v", err)
	}
	if err := s.begin(ctx); err != nil {
		// What has come before it went wrong is ours all the same.
		err = errors.Join(err, s.leave())
		s.linger(ctx, nil)
		return err
	}
	for _, l := range s.listeners {
		log.Printf("listening on %v", l.Addr())
	}
	supervisor("READY=1", fmt.Sprintf("MAINPID=%d", os.Getpid()), "STATUS="+s.state())

	var err error
	select {
	case <-s.succeeded:
	case err = <-s.failed:
	case <-ctx.Done():
	}
	moved, closeErr := s.stopAccepting()
	if moved {
		s.linger(ctx, time.After(s.drain))
	} else {
		s.sendAway()
	}
	return errors.Join(err, closeErr)
}

// stopAccepting ends what others can connect to, or leaves it to the next process, if that has
// taken over. A takeover that has begun comes to its end first, and none begins afterwards.
func (s *server) stopAccepting() (moved bool, err error) {
	s.moving.Lock()
	defer s.moving.Unlock()
	select {
	case <-s.succeeded:
		return true, s.leave()
	default:
		supervisor("STOPPING=1")
		return false, s.close()
	}
}

// acceptFrom serves the clients of a listener, until leave or stop.
func (s *server) acceptFrom(l *listener) {
	accept := func() (c *session, err error) {
		err = l.pass(func() error {
			conn, err := l.AcceptTCP()
			if err != nil {
				return err
			}
			// Before the gate can be shut: behind it, nobody is missing from the list.
			c, err = s.admit(conn)
			return err
		})
		return c, err
	}
	s.serving.Go(func() { s.end(acceptAll(s.accepting, l, accept, s.serve)) })
}

// acceptNext lets the next process in, until leave or stop.
func (s *server) acceptNext() {
	s.serving.Go(func() { s.end(acceptAll(s.accepting, s.control, s.control.accept, s.meet)) })
}

// end reports what ended an accept loop.
func (s *server) end(err error) {
	if err != nil {
		select {
		case s.failed <- err:
		default: // one is enough
		}
	}
}

// serve serves one client, until it has nothing more to say or another process has it. Then the
// caller closes the session.
func (s *server) serve(c *session) {
	defer s.sessions.remove(c)
	if err := c.serve(s.show); err != nil {
		trace("client: %v", err)
	}
}

// admit makes a session of a new client's connection, which it owns.
func (s *server) admit(conn stream) (*session, error) {
	id, err := identify(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s.counted.connections.Add(1)
	return s.sessions.add(newSession(conn, id.cookie, state{})), nil
}

// adopt serves a session that was not accepted here.
func (s *server) adopt(c *session) {
	s.serving.Go(func() {
		defer closeQuietly(c)
		s.serve(c)
	})
}

func (s *server) show(line []byte) {
	s.counted.lines.Add(1)
	show(s.stdout, line)
}

// leave stops accepting, and leaves everything that others wait at to the process that owns it.
func (s *server) leave() error { return s.closeListeners((*meetingPoint).leave) }

// close stops accepting for good.
func (s *server) close() error { return s.closeListeners((*meetingPoint).Close) }

// closeListeners returns when nothing is accepted any more.
func (s *server) closeListeners(closeControl func(*meetingPoint) error) error {
	for _, l := range s.listeners {
		l.shut()
	}
	err := errors.Join(closeAll(s.listeners), closeAll(s.surplus))
	if s.control != nil {
		s.control.shut()
		err = errors.Join(err, closeControl(s.control))
		defer s.control.open()
	}
	s.stop()
	for _, l := range s.listeners {
		l.open() // for its accept loop to see that it is over
	}
	return err
}

// linger serves the clients that are left to their end, or until late fires or ctx ends.
func (s *server) linger(ctx context.Context, late <-chan time.Time) {
	if n := s.sessions.count(); n > 0 {
		log.Printf("connections to serve to their end: %d", n)
	}
	select {
	case <-s.gone():
		return
	case <-late:
		log.Printf("connections that have not ended within %v: %d", s.drain, s.sessions.count())
	case <-ctx.Done():
	}
	s.sendAway()
}

// sendAway answers what every client has sent so far, and ends its connection. A session that does
// not stop for that, because nobody reads what it prints, ends with the process.
func (s *server) sendAway() {
	still, busy := halt(s.sessions.list(), s.timeout)
	deadline := time.Now().Add(s.timeout)
	releaseAll(still, func(c *session) error { return c.settle(s.show, deadline) })
	for _, c := range busy {
		closeQuietly(c)
	}
	select {
	case <-s.gone():
	case <-time.After(2 * s.timeout):
		log.Printf("connections that could not be ended in order: %d", s.sessions.count())
	}
}

// gone is closed when nothing is served any more.
func (s *server) gone() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.serving.Wait()
	}()
	return gone
}
