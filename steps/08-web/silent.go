//go:build linux

package main

// Sessions that have moved here, and whose clients say nothing. Of ten thousand, that is most. A
// goroutine and a place in Go's poller would be most of what it costs to move them, on both sides. So
// they get neither before somebody speaks: until then they stand still, in an epoll set of our own.

import (
	"log"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// silent is that set.
type silent struct {
	epoll int

	mu  sync.Mutex
	all map[int32]*session // by descriptor; these have no conn
}

func newSilent() *silent {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		log.Fatal(os.NewSyscallError("epoll_create1", err)) // as Go's own poller does
	}
	return &silent{epoll: epoll, all: map[int32]*session{}}
}

// add adds a session, which may speak up once. The caller holds mu.
func (s *silent) add(c *session) error {
	s.all[int32(c.fd)] = c
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, c.fd,
		&unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(c.fd)}))
}

// take takes a session that is not to be heard here any more, and reports whether it was there. The
// caller holds mu. The socket stays in the set: to remove it would be half of what moving it costs here.
// If its client speaks up, that is for nobody, and once.
func (s *silent) take(c *session) bool {
	if s.all[int32(c.fd)] != c {
		return false
	}
	delete(s.all, int32(c.fd))
	return true
}

// remove removes a session, and its socket from the set. To close the descriptor would not do that as
// long as another process has the socket: epoll(7). The caller holds mu.
func (s *silent) remove(c *session) {
	if s.take(c) {
		unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, c.fd, nil) // fails if add has
	}
}

// watch calls wake for every session whose client has something to say, which it removes.
func (s *silent) watch(wake func(*session)) {
	events := make([]unix.EpollEvent, 64)
	for {
		n, _ := unix.EpollWait(s.epoll, events, -1) // EINTR: signal(7)
		s.mu.Lock()
		for _, e := range events[:max(n, 0)] {
			if c := s.all[e.Fd]; c != nil {
				s.remove(c)
				wake(c)
			}
		}
		s.mu.Unlock()
	}
}

// adopt serves sessions that another process gives, if commit succeeds. Before that, no byte is read
// or written. After an error they are closed.
func (s *server) adopt(batch []*session, commit func() error) error {
	err := s.reserve(len(batch))
	if err != nil {
		closeAll(batch)
		return err
	}
	s.silent.mu.Lock()
	defer s.silent.mu.Unlock()
	for _, c := range batch {
		if err == nil && c.isSilent() {
			err = s.silent.add(c)
		} else if err == nil {
			err = c.open()
		}
	}
	if err == nil {
		err = commit()
	}
	if err != nil {
		for _, c := range batch {
			s.silent.remove(c)
		}
		closeAll(batch)
		s.free(len(batch))
		return err
	}
	s.add(batch...)
	return nil
}

// halt asks a session to stand still, as its own halt does. One that is silent stands already.
func (s *server) halt(c *session, to chan<- *session) {
	s.silent.mu.Lock()
	defer s.silent.mu.Unlock()
	if s.silent.take(c) {
		c.stood = time.Now()
		to <- c
	} else {
		c.halt(to)
	}
}

// closeAll closes this process's descriptors of sessions that are another's.
func closeAll(batch []*session) {
	for _, c := range batch {
		c.leave()
	}
}
