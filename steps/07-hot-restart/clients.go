//go:build linux

package main

// What a process does for its clients: accepting, serving, counting. It knows nothing of other
// processes.

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// server is what is served here: listeners, and sessions.
type server struct {
	slots              chan struct{} // one for each session that there may be
	connections, lines atomic.Uint64
	before             totals         // what earlier processes have counted: set before anybody asks
	clients            sync.WaitGroup // sessions
	silent             *silent        // some of these
	batch              int            // how many of these move at once, at most

	// Of whoever calls open and shut, which is main, and then the giver.
	listeners []*net.TCPListener
	shutting  chan struct{}  // closed to end the accept loops
	loops     sync.WaitGroup // accept loops

	mu       sync.Mutex
	sessions map[*session]bool // those that are served, or stand still
}

// totals is what has been counted since the first generation.
type totals struct {
	Generation  int    `json:"generation"`
	Connections uint64 `json:"connections"`
	Lines       uint64 `json:"lines"`
}

// minus is what has been counted since then.
func (t totals) minus(then totals) totals {
	return totals{Connections: t.Connections - then.Connections, Lines: t.Lines - then.Lines}
}

// spareFDs is how many descriptors are not for clients, but for takeovers and the like. A server that
// has run out of them is the one that most needs to be replaced.
const spareFDs = 64

func newServer(batch int) *server {
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // cannot fail: getrlimit(2)
	slots := max(1, int(min(limit.Cur, 1<<20))-spareFDs)
	s := &server{batch: min(batch, maxSockets), slots: make(chan struct{}, slots), sessions: map[*session]bool{}, silent: newSilent()}
	go s.silent.watch(s.serve)
	return s
}

// open accepts from these listeners, until shut.
func (s *server) open(listeners []*net.TCPListener) {
	s.listeners, s.shutting = listeners, make(chan struct{})
	for _, l := range listeners {
		l.SetDeadline(time.Time{})
		s.loops.Go(func() { s.acceptAll(l, s.shutting) })
	}
}

// shut ends the accept loops, and returns when nobody is accepted any more. The listeners stay open,
// and whoever comes now waits in their queues. To close them would send those away.
func (s *server) shut() {
	close(s.shutting)
	for _, l := range s.listeners {
		l.SetDeadline(past)
	}
	s.loops.Wait()
}

// acceptAll serves everyone who connects. Errors are reported and waited out, as in step 01.
func (s *server) acceptAll(l *net.TCPListener, shutting <-chan struct{}) {
	for reported := (time.Time{}); ; {
		select {
		case s.slots <- struct{}{}:
		case <-shutting:
			return
		}
		err := s.accept(l)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			if time.Since(reported) > time.Minute {
				reported = time.Now()
				log.Printf("%v: clients wait in the accept queue until it works again", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// acceptWaiting serves everyone who waits in l's accept queue, and closes l when it is empty.
func (s *server) acceptWaiting(l *net.TCPListener) {
	for waiting(l) {
		s.slots <- struct{}{}
		l.SetDeadline(time.Now().Add(time.Second)) // a client may have left the queue
		if err := s.accept(l); err != nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
	l.Close()
}

// accept waits for a client, and serves it. The caller has taken a slot.
func (s *server) accept(l *net.TCPListener) error {
	conn, err := l.AcceptTCP()
	if err == nil {
		var c *session
		if c, err = newSession(conn); err == nil {
			s.connections.Add(1)
			s.add(c)
			return nil
		}
		conn.Close()
	}
	<-s.slots
	return err
}

// reserve takes n slots, or none.
func (s *server) reserve(n int) error {
	for taken := range n {
		select {
		case s.slots <- struct{}{}:
		default:
			s.free(taken)
			return fmt.Errorf("no room for %d more connections: raise RLIMIT_NOFILE (ulimit -n)", n)
		}
	}
	return nil
}

func (s *server) free(n int) {
	for range n {
		<-s.slots
	}
}

// add serves sessions that are new here, each with a slot.
func (s *server) add(some ...*session) {
	s.clients.Add(len(some))
	s.mu.Lock()
	for _, c := range some {
		s.sessions[c] = true
	}
	s.mu.Unlock()
	for _, c := range some {
		if c.conn != nil {
			s.serve(c)
		}
	}
}

// serve serves a session, and returns at once. It is called again when one goes on that has stood still.
func (s *server) serve(c *session) {
	if err := c.open(); err != nil {
		log.Printf("a connection is lost: %v", err) // the poller's limits: epoll_ctl(2)
		unix.Shutdown(c.fd, unix.SHUT_RDWR)         // and so serve ends at once
	}
	go func() {
		asked := c.serve(&s.lines)
		if c.over {
			s.remove(c)
			c.end()
			s.free(1)
		}
		if asked != nil {
			asked <- c
		}
	}()
}

// remove forgets sessions that are not served here any more. Their slots are free when their descriptors
// are: who moves makes no room here, since the next process may have no more than this one.
func (s *server) remove(some ...*session) {
	s.mu.Lock()
	for _, c := range some {
		delete(s.sessions, c)
	}
	s.mu.Unlock()
	s.clients.Add(-len(some))
}

// list returns the sessions that may be moved: those whose clients are silent, and those with whom
// this process has just talked.
func (s *server) list() (idle, busy []*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lately := time.Now().Add(-time.Second).UnixNano()
	for c := range s.sessions {
		switch {
		case c.stays.Load():
		case c.heard.Load() < lately:
			idle = append(idle, c)
		default:
			busy = append(busy, c)
		}
	}
	return idle, busy
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// drain returns when the last client has left, or after limit. The accept loops must have ended.
func (s *server) drain(limit time.Duration) {
	log.Printf("draining for up to %v: clients %d", limit, s.count())
	begin, ended := time.Now(), make(chan struct{})
	go func() {
		s.clients.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		log.Printf("drained in %v", time.Since(begin).Round(time.Millisecond))
	case <-time.After(limit):
		log.Printf("cut: clients %d have not left within %v", s.count(), limit)
	}
}

// now is what has been counted up to now.
func (s *server) now() totals {
	t := s.before
	t.Connections += s.connections.Load()
	t.Lines += s.lines.Load()
	return t
}

// countAlso adds what another process has counted.
func (s *server) countAlso(t totals) {
	s.connections.Add(t.Connections)
	s.lines.Add(t.Lines)
}

func (s *server) String() string {
	t := s.now()
	return fmt.Sprintf("generation %d: clients %d of %d; since generation 1: connections %d, lines %d",
		t.Generation, s.count(), cap(s.slots), t.Connections, t.Lines)
}
