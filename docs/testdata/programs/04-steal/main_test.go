package main

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An accept(2) that fails is no end: whoever connects next is accepted.
func TestShortage(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	c, err := net.Dial("tcp", l.Addr().String())
	check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	s := &server{name: "old", sessions: map[*session]bool{}}
	go s.acceptAll(&short{Listener: l})
	fmt.Fprintln(c, "hello")
	check(c.(*net.TCPConn).CloseWrite())
	if all, err := io.ReadAll(c); string(all) != "old \"hello\"\n" || err != nil {
		t.Errorf("the client reads %q, %v", all, err)
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
