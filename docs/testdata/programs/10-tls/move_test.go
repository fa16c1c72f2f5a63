package main

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// A session that a truncation has ended is not said to have come to its end. Plain TCP stands in for a socket
// that has keys: whatever record would be sent is in what the client reads.
func TestTruncation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	accepted, err := l.Accept()
	check(err)
	s := &server{name: "old", sessions: map[*session]bool{}}
	s.start(&kernelTLS{clientConn: accepted.(*net.TCPConn)}, state{})
	fmt.Fprint(c, "one\nhalf a li")
	check(c.(*net.TCPConn).CloseWrite())
	if all, err := io.ReadAll(c); string(all) != "old \"one\"\n" || err != nil {
		t.Errorf("the client reads %q, %v", all, err)
	}
}
