package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

func listen(t *testing.T) (l *short, dial func() net.Conn) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	t.Cleanup(func() { tcp.Close() })
	return &short{Listener: tcp}, func() net.Conn {
		c, err := net.Dial("tcp", tcp.Addr().String())
		check(err)
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// short is a listener that is out of descriptors as often.
type short struct {
	net.Listener
	left atomic.Int32
}

func (l *short) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, unix.EMFILE
	}
	return l.Listener.Accept()
}

// serve has a webListener accept, and returns its clients.
func serve(l net.Listener) (accepted chan net.Conn) {
	config, err := newConfig()
	check(err)
	web := newWebListener(l, config)
	accepted = make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	return accepted
}

// An accept(2) that fails is no end: whoever connects next is accepted.
func TestShortage(t *testing.T) {
	l, dial := listen(t)
	l.left.Store(1)
	accepted := serve(l)
	go tls.Client(dial(), &tls.Config{InsecureSkipVerify: true}).Handshake()
	if c, open := <-accepted; !open {
		t.Error("it accepts no more")
	} else {
		c.Close()
	}
}

// A client that says nothing is not waited for when the listener is closed.
func TestSilent(t *testing.T) {
	l, dial := listen(t)
	accepted := serve(l)
	dial() // and says nothing
	go tls.Client(dial(), &tls.Config{InsecureSkipVerify: true}).Handshake()
	c := <-accepted // so the one before has been, too
	defer c.Close()
	l.Close()
	select {
	case _, open := <-accepted:
		if open {
			t.Error("another has been accepted")
		}
	case <-time.After(patience):
		t.Error("a silent client holds up the end")
	}
}

// Nor is one that reads nothing, while the server writes. Plain TCP stands in for a socket that has keys.
func TestBlocked(t *testing.T) {
	l, dial := listen(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, 64<<20))
	})}
	go server.Serve(plain{l})
	c := dial()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- server.Close() }()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("a client that reads nothing holds up the end")
	}
}

type plain struct{ net.Listener }

func (l plain) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return webConn{&kernelTLS{clientConn: c.(*net.TCPConn)}}, nil
}
