//go:build linux

package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
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
			!errors.Is(c.SetReadDeadline(past), errors.ErrUnsupported) ||
			!errors.Is(c.SetWriteDeadline(time.Now().Add(time.Hour)), errors.ErrUnsupported) {
			return
		}
		io.Copy(c, c)
	})
	mux.HandleFunc("GET /closed", func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the client sees it
		}
		go func() {
			n, err := c.Read(make([]byte, 1))
			calls <- call{n, err}
		}()
		go func() {
			n, err := c.Write(make([]byte, 64<<20))
			calls <- call{n, err}
		}()
		<-closing
		c.Close()
	})
	mux.HandleFunc("GET /mode", func(w http.ResponseWriter, r *http.Request) {
		if x, ok := hijack(w, r); ok {
			x.Close()
		}
	})
	mux.HandleFunc("GET /events", serveEvents)
	mux.HandleFunc("GET /chat", serveChat)
	web.Handler = mux
	go web.Serve(exchanges)
})

var gone = make(chan string, 1)

// call is what a Read or a Write has returned.
type call struct {
	n   int
	err error
}

var calls, closing = make(chan call, 2), make(chan struct{})

// served is a client, whose connection is served.
func served(t *testing.T) *net.TCPConn {
	t.Helper()
	serveOnce()
	c, s := connected(t)
	all := newServer(1)
	all.slots <- struct{}{}
	all.add(s)
	return c
}

// connected is a client, and its session, which nobody serves.
func connected(t *testing.T) (*net.TCPConn, *session) {
	t.Helper()
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
	return c.(*net.TCPConn), s
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

// TestClosed: who hijacks the connection may close it while others still read and write, as a proxy does when its
// backend has closed. These end, and only then the session goes on. What a Write has taken reaches the client, and
// that is not all of it at once.
func TestClosed(t *testing.T) {
	for range 10 {
		c := served(t)
		c.SetReadBuffer(64 << 10) // so that much less than what is written is on its way
		io.WriteString(c, "GET /closed HTTP/1.1\r\nHost: x\r\n\r\n")
		wait := regexp.MustCompile(`\[IO wait\]:\n(.+\n)*.+\(\*exchange\)\.(Read|Write)\(`)
		eventually(t, "both wait", func() bool {
			stacks := make([]byte, 1<<20)
			return len(wait.FindAll(stacks[:runtime.Stack(stacks, true)], -1)) == 2
		})
		closing <- struct{}{}
		taken := 0
		for range 2 {
			select {
			case call := <-calls:
				if !errors.Is(call.err, net.ErrClosed) || call.n == 64<<20 {
					t.Errorf("it has returned %d, %v", call.n, call.err)
				}
				taken += call.n
			case <-time.After(time.Minute):
				t.Fatal("it still waits")
			}
		}
		if n, err := io.Copy(io.Discard, c); n != int64(taken) || err != nil {
			t.Errorf("got %d bytes, %v, of %d", n, err, taken)
		}
	}
}

// TestLeaving: when another process has everything else, no mode begins here any more.
func TestLeaving(t *testing.T) {
	leave()
	defer func() {
		leaving.Store(false)
		web.SetKeepAlivesEnabled(true)
	}()
	for path, status := range map[string]int{"/mode": 503, "/chat": 503, "/events": 200} { // a stream that ends at once
		c := served(t)
		io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		in := bufio.NewReader(c)
		answer, err := http.ReadResponse(in, nil)
		if err != nil || answer.StatusCode != status || !answer.Close {
			t.Fatalf("%s: %v, %v", path, answer, err)
		}
		if kind := answer.Header.Get("Content-Type"); status == 200 && kind != "text/event-stream" {
			t.Errorf("%s: it is %s", path, kind)
		}
		if _, err := io.Copy(io.Discard, in); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestEmptyLine: what is no request sets no time-out for one, also if it comes in two pieces.
func TestEmptyLine(t *testing.T) {
	_, s := connected(t)
	for _, piece := range []string{"\r", "\n", "\r\n", "\r", "\nG"} {
		s.In = append(s.In, piece...)
		if s.answer(nil) || s.Until.IsZero() != (len(s.In) == 0) || s.Until != s.deadline {
			t.Errorf("behind %q: %q, until %v, %v", piece, s.In, s.Until, s.deadline)
		}
	}
}

// TestRoomFull: the log has a reason when the file system has taken only a part.
func TestRoomFull(t *testing.T) {
	var r room
	if err := r.open(filepath.Join(t.TempDir(), "room")); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1000, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	err := r.post(ws.NewBinaryFrame(make([]byte, 5000)))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("never: %s", what)
		}
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
		eventually(t, "it is in the room", func() bool { return here() > 0 })
		leave(c)
		eventually(t, "it is forgotten", func() bool { return here() == 0 })
	}
}
