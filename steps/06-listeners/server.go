//go:build linux

package main

// What a process does for its clients. It knows nothing of other processes.

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// server serves clients, and counts them and their lines. It does not print what they say, as the
// steps before do: a terminal that nobody reads would hold them up.
type server struct {
	listeners []*net.TCPListener
	running   sync.WaitGroup // accept loops and clients
	slots     chan struct{}  // one for each client that there may be; whoever accepts takes one

	before             totals // what earlier processes have counted
	connections, lines atomic.Uint64
	clients            atomic.Int64
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

func newServer(listeners []*net.TCPListener, before totals) *server {
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // cannot fail: getrlimit(2)
	slots := max(1, int(min(limit.Cur, 1<<20))-spareFDs)
	return &server{listeners: listeners, before: before, slots: make(chan struct{}, slots)}
}

// acceptAll serves everyone who connects, until l is closed. Other errors are reported and waited
// out, as in step 01.
func (s *server) acceptAll(l *net.TCPListener) {
	for reported := (time.Time{}); ; {
		err := s.accept(l)
		if errors.Is(err, net.ErrClosed) {
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
		l.SetDeadline(time.Now().Add(time.Second)) // the process before may have been quicker
		if err := s.accept(l); err != nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
	l.Close()
}

// accept waits for a slot, then for a client, and serves it.
func (s *server) accept(l *net.TCPListener) error {
	s.slots <- struct{}{}
	c, err := l.AcceptTCP()
	if err != nil {
		<-s.slots
		return err
	}
	s.connections.Add(1)
	s.clients.Add(1)
	s.running.Go(func() {
		s.echo(c)
		c.Close()
		s.clients.Add(-1)
		<-s.slots
	})
	return nil
}

// echo sends every line back, as in step 01.
func (s *server) echo(c io.ReadWriter) {
	in := bufio.NewReaderSize(c, 16<<10)
	for {
		line, err := in.ReadSlice('\n')
		if _, failed := c.Write(line); failed != nil || err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		if err == nil {
			s.lines.Add(1)
		}
	}
}

// drain returns when the last client has left, or after limit. The listeners must be closed.
func (s *server) drain(limit time.Duration) {
	log.Printf("draining for up to %v: clients %d", limit, s.clients.Load())
	begin, ended := time.Now(), make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		log.Printf("drained in %v", time.Since(begin).Round(time.Millisecond))
	case <-time.After(limit):
		log.Printf("cut: clients %d have not left within %v", s.clients.Load(), limit)
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
		t.Generation, s.clients.Load(), cap(s.slots), t.Connections, t.Lines)
}
