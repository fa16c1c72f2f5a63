//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// A session and nothing else, in one process: it can be stopped more often than between two.

// pair is a connection: the server's end, and the client's.
func pair(t *testing.T) (server, client *net.TCPConn) {
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
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

func sessionOf(t *testing.T, conn *net.TCPConn) *session {
	t.Helper()
	s, err := newSession(conn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// moved is the session that another process would make of one that stands still.
func moved(t *testing.T, s *session) *session {
	t.Helper()
	text, err := json.Marshal(s.state)
	if err != nil {
		t.Fatal(err)
	}
	next := &session{cookie: s.cookie}
	if err := json.Unmarshal(text, &next.state); err != nil {
		t.Fatal(err)
	}
	next.In, next.Out = clone(next.In), clone(next.Out) // as unpack does
	if next.fd, err = unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	s.leave()
	if err := next.open(); err != nil {
		t.Fatal(err)
	}
	return next
}

// TestStoppedAnywhere: a connection moves from one session to the next as often as it can be stopped,
// while its client sends lines of any length and reads as it likes. What it reads is what it has sent.
func TestStoppedAnywhere(t *testing.T) {
	for name, slow := range map[string]bool{"fast reader": false, "slow reader": true} {
		t.Run(name, func(t *testing.T) {
			server, client := pair(t)
			server.SetWriteBuffer(32 << 10)
			client.SetReadBuffer(32 << 10)
			random := rand.New(rand.NewPCG(1, 2))
			var sent []byte
			for len(sent) < 4<<20 {
				sent = append(sent, bytes.Repeat([]byte{byte(random.IntN(256))}, 1<<random.IntN(17))...)
				sent = fmt.Appendf(sent, " %d\n", len(sent))
			}
			sent = sent[:len(sent)-1] // the last line has no end
			go func() {
				client.Write(sent) // what fails is missing below
				client.CloseWrite()
			}()
			received := make(chan []byte)
			go func() {
				var got []byte
				for buffer := make([]byte, 16<<10); ; {
					n, err := client.Read(buffer)
					got = append(got, buffer[:n]...)
					if err != nil {
						received <- got
						return
					}
					if slow {
						time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
					}
				}
			}()
			left := map[string]int{}
			s := newServer(maxSockets)
			c := sessionOf(t, server)
			for still := make(chan *session, 1); ; c = moved(t, c) {
				s.slots <- struct{}{}
				s.add(c)
				time.Sleep(time.Duration(random.IntN(500)) * time.Microsecond) // any moment will do
				s.halt(c, still)
				if <-still; c.over {
					break
				}
				s.remove(c)
				for what, is := range map[string]bool{"moved": true, "in": len(c.In) > 0, "out": len(c.Out) > 0, "inside": c.Inside} {
					if is {
						left[what]++
					}
				}
			}
			if got := <-received; !bytes.Equal(got, sent) {
				t.Errorf("%d bytes sent, %d received", len(sent), len(got))
			}
			t.Logf("what was left to the next: %v", left)
		})
	}
}

// TestReleased: a session goes on if the request is taken back, and as often as one likes.
func TestReleased(t *testing.T) {
	server, client := pair(t)
	s, c, still := newServer(maxSockets), sessionOf(t, server), make(chan *session, 1)
	s.slots <- struct{}{}
	s.add(c)
	for i := range 2000 {
		s.halt(c, still)
		if !c.release() {
			<-still // it stood already
			s.serve(c)
		}
		if i%100 == 0 {
			echoed(t, client, fmt.Sprintf("line %d\n", i))
		}
	}
	client.CloseWrite()
	if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
	s.clients.Wait()
}

func echoed(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	io.WriteString(c, text) // what fails is missing below
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v; want %q", got, err, text)
	}
}

// TestOwnDeadline: a time-out of the session's own ends it; and neither wipes a request to stand still
// nor is wiped by one.
func TestOwnDeadline(t *testing.T) {
	server, _ := pair(t)
	c, still := sessionOf(t, server), make(chan *session, 1)
	c.halt(still)
	c.setDeadline(time.Now().Add(time.Hour)) // later than the request, which counts all the same
	s := newServer(maxSockets)
	if asked := c.serve(&s.lines); asked == nil || c.over {
		t.Fatal("the request to stand still was lost")
	}
	c.halt(still)
	if !c.release() || !c.deadline.After(time.Now()) {
		t.Fatal("the session's own deadline was lost")
	}
	c.halt(still)
	c.setDeadline(time.Now().Add(10 * time.Millisecond))
	if asked := c.serve(&s.lines); asked == nil || c.over {
		t.Fatal("the request to stand still was lost")
	}
	if asked := c.serve(&s.lines); asked != nil || !c.over {
		t.Error("the session has no time-out any more")
	}
}

// TestEndedMeanwhile: a session that ends instead of standing still says so.
func TestEndedMeanwhile(t *testing.T) {
	server, client := pair(t)
	s, c, still := newServer(maxSockets), sessionOf(t, server), make(chan *session, 1)
	client.Close()
	s.slots <- struct{}{}
	c.asked = still // as halt does before the deadline
	s.add(c)
	if <-still; !c.over {
		t.Error("it has not ended")
	}
	s.clients.Wait()
}

// TestBuffers: a session that has nothing in hand has no buffer either.
func TestBuffers(t *testing.T) {
	server, client := pair(t)
	s, c, still := newServer(maxSockets), sessionOf(t, server), make(chan *session, 1)
	s.slots <- struct{}{}
	s.add(c)
	echoed(t, client, strings.Repeat("x", 3*bufferSize)+"\n")
	s.halt(c, still)
	if <-still; c.In != nil || c.Out != nil {
		t.Errorf("it keeps buffers of %d and %d bytes", cap(c.In), cap(c.Out))
	}
	s.serve(c)
	echoed(t, client, "and on\n")
}

// TestSilent: a session that has moved and is silent has no goroutine, and is served when its client
// speaks; it stands still at once when asked.
func TestSilent(t *testing.T) {
	server, client := pair(t)
	s, first, still := newServer(maxSockets), sessionOf(t, server), make(chan *session, 1)
	c := &session{cookie: first.cookie}
	var err error
	if c.fd, err = unix.FcntlInt(uintptr(first.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	first.leave()
	if err := s.adopt([]*session{c}, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if c.conn != nil {
		t.Error("it is known to the poller")
	}
	s.halt(c, still)
	if <-still; c.over {
		t.Error("it has ended")
	}
	s.serve(c) // goes on
	echoed(t, client, "hello\n")
	s.halt(c, still)
	<-still
	s.remove(c)
	c = moved(t, c)
	c.leave()
}

// TestAdoptedInVain: what was not to be is closed, and not ended; a byte that came is not lost.
func TestAdoptedInVain(t *testing.T) {
	server, client := pair(t)
	s, first := newServer(maxSockets), sessionOf(t, server)
	fd, err := unix.FcntlInt(uintptr(first.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(client, "early\n")
	c := &session{fd: fd, cookie: first.cookie}
	if err := s.adopt([]*session{c}, func() error { return os.ErrClosed }); err != os.ErrClosed {
		t.Errorf("got %v", err)
	}
	if len(s.slots) > 0 || s.count() > 0 || len(s.silent.all) > 0 {
		t.Error("something is left of it")
	}
	s.slots <- struct{}{}
	s.add(first)
	got := make([]byte, 6)
	if _, err := io.ReadFull(client, got); err != nil {
		t.Error(err)
	}
}

// busyConn is a connection whose handler works, whatever anybody asks of it, until it is free.
type busyConn struct {
	*net.TCPConn
	free chan struct{}
}

func (c busyConn) Write(b []byte) (int, error) {
	<-c.free
	return c.TCPConn.Write(b)
}

// conversation is two servers, and a control connection on which the first gives and the second takes.
func conversation(t *testing.T) (from, to *server, r *receiver, taken chan error) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends []*socket.Conn
	for _, fd := range fds {
		c, err := socket.New(fd, "control")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends = append(ends, c)
	}
	from, to, taken = newServer(maxSockets), newServer(maxSockets), make(chan error, 1)
	go func() {
		_, err := (&taker{Conn: ends[1], server: to}).takeAll()
		taken <- err
	}()
	return from, to, &receiver{Conn: ends[0], timeout: 5 * time.Minute}, taken
}

// TestUnfit: a session that fits no offer stays, and is served. All others of its batch move.
func TestUnfit(t *testing.T) {
	from, to, r, taken := conversation(t)
	var clients []*net.TCPConn
	var all []*session
	for i := range 5 {
		server, client := pair(t)
		s := sessionOf(t, server)
		if i == 2 {
			s.Out = make([]byte, maxBytes+1) // as an answer of your own might be
		}
		from.slots <- struct{}{}
		from.clients.Add(1)
		from.sessions[s] = true
		clients, all = append(clients, client), append(all, s)
	}
	if err := (&giver{server: from}).giveBatch(r, all, func() {}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := <-taken; err != errGone || to.count() != 4 || from.count() != 1 || !all[2].stays.Load() {
		t.Errorf("%d have moved, %d stay; %v", to.count(), from.count(), err)
	}
	for i, c := range clients {
		if i == 2 {
			if n, err := io.CopyN(io.Discard, c, maxBytes+1); err != nil {
				t.Errorf("it hears %d bytes: %v", n, err)
			}
		}
		echoed(t, c, "still here\n")
	}
	for _, s := range r.moved {
		s.leave()
	}
}

// TestSlowOneHoldsUpNobody: of many that are to move, one does not stand still. All others move, and are
// served by the new process before it does. Then it moves, too.
func TestSlowOneHoldsUpNobody(t *testing.T) {
	from, to, r, taken := conversation(t)
	var clients []*net.TCPConn
	busy := busyConn{free: make(chan struct{})}
	for i := range 40 {
		server, client := pair(t)
		clients = append(clients, client)
		c := conn(server)
		if i == 0 {
			busy.TCPConn = server
			c = busy
		}
		s, err := newSession(c)
		if err != nil {
			t.Fatal(err)
		}
		from.slots <- struct{}{}
		from.add(s)
	}
	io.WriteString(clients[0], "think about it\n")
	for _, c := range clients[1:] {
		echoed(t, c, "hello\n")
	}
	idle, talking := from.list()
	given := make(chan error, 1)
	go func() {
		given <- (&giver{server: from}).giveSessions(r, append(idle, talking...), 8, 5*time.Minute)
	}()
	for end := time.Now().Add(5 * time.Minute); to.count() < len(clients)-1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d have moved", to.count())
		}
	}
	for _, c := range clients[1:] {
		echoed(t, c, "with the new one\n")
	}
	if n := from.count(); n != 1 {
		t.Errorf("%d are still here", n)
	}
	close(busy.free)
	if err := <-given; err != nil {
		t.Error(err)
	}
	answer := make([]byte, len("think about it\n"))
	if _, err := io.ReadFull(clients[0], answer); err != nil || string(answer) != "think about it\n" {
		t.Errorf("the busy one's client gets %q, %v", answer, err)
	}
	echoed(t, clients[0], "and me\n")
	r.Close()
	if err := <-taken; err != errGone || to.count() != len(clients) {
		t.Errorf("%d have moved, and then: %v", to.count(), err)
	}
	for _, s := range r.moved {
		s.leave()
	}
}
