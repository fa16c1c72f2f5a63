package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// An accept(2) that fails is no end: whoever connects next is accepted.
func TestShortage(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	c, err := net.Dial("tcp", l.Addr().String())
	check(err)
	defer c.Close()
	s := &server{name: "old", sessions: map[*session]bool{}}
	s.acceptAll(&short{Listener: l})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) != 1 {
		t.Errorf("%d sessions, want one", len(s.sessions))
	}
}

// short is a listener that first is out of descriptors, then accepts a client, and then is closed.
type short struct {
	net.Listener
	calls int
}

func (l *short) Accept() (net.Conn, error) {
	switch l.calls++; l.calls {
	case 1:
		return nil, unix.EMFILE
	case 2:
		return l.Listener.Accept()
	}
	l.Listener.Close()
	return nil, net.ErrClosed
}
