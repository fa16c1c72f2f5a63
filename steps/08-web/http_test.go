//go:build linux

package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// What handlers see of an exchange, in one process. The server is the same for all: it has one handler.

var serveOnce = sync.OnceFunc(func() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /gone", func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone <- r.RemoteAddr
	})
	mux.HandleFunc("GET /raw", func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the client sees it
		}
		defer c.Close()
		// Libraries begin with taking back what net/http may have set, and give up if that fails.
		if c.SetDeadline(time.Time{}) != nil || c.SetReadDeadline(time.Time{}) != nil || c.SetWriteDeadline(time.Time{}) != nil ||
			!errors.Is(c.SetWriteDeadline(time.Now().Add(time.Hour)), errors.ErrUnsupported) {
			return
		}
		io.Copy(c, c)
	})
	mux.HandleFunc("GET /chat", serveChat)
	web.Handler = mux
	go web.Serve(exchanges)
})

var gone = make(chan string, 1)

// served is a client, whose connection is served.
func served(t *testing.T) *net.TCPConn {
	t.Helper()
	serveOnce()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSession(conn.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	all := newServer(1)
	all.slots <- struct{}{}
	all.add(s)
	return c.(*net.TCPConn)
}

// TestClientGone: a handler's context is cancelled when its client has gone, although nobody reads from there.
func TestClientGone(t *testing.T) {
	c := served(t)
	io.WriteString(c, "GET /gone HTTP/1.1\r\nHost: x\r\n\r\n")
	addr := c.LocalAddr().String()
	c.Close()
	select {
	case got := <-gone:
		if got != addr {
			t.Errorf("the handler's client was %s, not %s", got, addr)
		}
	case <-time.After(time.Minute):
		t.Error("the handler does not notice")
	}
}

// TestHijacked: who hijacks the connection and keeps it, as libraries do, reads and writes as usual.
func TestHijacked(t *testing.T) {
	c := served(t)
	io.WriteString(c, "GET /raw HTTP/1.1\r\nHost: x\r\n\r\nright behind it\n")
	in := bufio.NewReader(c)
	for _, want := range []string{"right behind it\n", "hello\n", "and on\n"} {
		if got, err := in.ReadString('\n'); got != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
		io.WriteString(c, map[string]string{"right behind it\n": "hello\n", "hello\n": "and on\n"}[want])
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v; want the end", rest, err)
	}
}

// TestChatLeft: a chat that has ended is forgotten, also if nobody says anything any more.
func TestChatLeft(t *testing.T) {
	if err := chatRoom.open(filepath.Join(t.TempDir(), "room")); err != nil {
		t.Fatal(err)
	}
	here := func() int {
		chatRoom.mu.Lock()
		defer chatRoom.mu.Unlock()
		return len(chatRoom.here)
	}
	for _, leave := range []func(c *net.TCPConn){
		func(c *net.TCPConn) { c.Close() },
		func(c *net.TCPConn) { c.CloseWrite() },
		func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		c := served(t)
		io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", answer, err)
		}
		for late := time.Now().Add(time.Minute); here() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatal("it is not in the room")
			}
		}
		leave(c)
		for late := time.Now().Add(time.Minute); here() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatal("it is remembered")
			}
		}
	}
}
