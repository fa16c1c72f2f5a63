//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Both halves of the protocol in one process, over real sockets: for them, a process that closes
// its end of the control connection is a dead one.

func long() bool { return os.Getenv("STEAL_LONG") != "" }

// noLeak expects as many open descriptors at the end of the test as there are now. What the test
// opens it closes, with a Cleanup registered after this one.
func noLeak(t *testing.T) {
	t.Helper()
	count := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	before := count()
	t.Cleanup(func() {
		if now := count(); now != before {
			t.Errorf("%d descriptors are open, want %d", now, before)
		}
	})
}

// session is an old process's half, a new one's, and a TCP connection between them to be moved.
type session struct {
	*testing.T
	*giver
	path           string
	server, client *net.TCPConn
}

func newSession(t *testing.T, timeout time.Duration) session {
	t.Helper()
	path := shortPath(t)
	control, err := listenControl(path) // which keeps a descriptor for life, of its lock
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.remove(); control.Close() })
	noLeak(t)
	g := &giver{control: control, timeout: timeout}
	t.Cleanup(func() {
		if g.first != nil {
			g.drop()
		}
	})
	server, client := tcpPair(t)
	return session{t, g, path, server, client}
}

// tcpPair is the two ends of a TCP connection.
func tcpPair(t *testing.T) (server, client *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	client.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { client.Close(); server.Close() })
	return server, client
}

// dial is a new process that waits in line.
func (s session) dial() *socket.Conn {
	s.Helper()
	c, err := dialControl(s.path)
	if err != nil {
		s.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	s.Cleanup(func() { c.Close() })
	return c
}

// offered lets the old process make an offer, and returns when it is queued for the new one: what
// give will say comes later.
func (s session) offered(to *socket.Conn) (outcome chan error, m message, fds []int) {
	s.Helper()
	outcome = make(chan error, 1)
	go func() { outcome <- s.give(s.server, state{Unread: []byte("read ahead")}) }()
	m, fds, err := receiveMessage(to, 1)
	if err != nil || m.Type != "offer" {
		s.Fatalf("received %+v, %v, want an offer", m, err)
	}
	return outcome, m, fds
}

// hears expects the next message of that type.
func hears(t *testing.T, c *socket.Conn, want string) message {
	t.Helper()
	m, fds, err := receiveMessage(c, 1)
	closeFDs(fds)
	if err != nil || m.Type != want {
		t.Fatalf("received %+v, %v, want %s", m, err, want)
	}
	return m
}

func says(t *testing.T, c *socket.Conn, m message, fds ...int) {
	t.Helper()
	if err := sendMessage(c, m, fds...); err != nil {
		t.Fatal(err)
	}
}

// fails expects an error that says so.
func fails(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// isServed expects that c, which it closes, is the client's connection.
func (s session) isServed(c *socket.Conn) {
	s.Helper()
	if c == nil {
		s.Fatal("nobody serves it")
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	_, was, wasErr := identify(s.server)
	_, is, isErr := identify(c)
	if err := errors.Join(wasErr, isErr); err != nil || was != is {
		s.Errorf("its cookie is %d, and was %d: %v", is, was, err)
	}
	got := make([]byte, 5)
	_, clientErr := io.WriteString(s.client, "hello")
	n, err := c.Read(got)
	if string(got[:n]) != "hello" || err != nil {
		s.Errorf("read %q, %v, %v", got[:n], err, clientErr)
	}
}

func TestGive(t *testing.T) {
	s := newSession(t, patience)
	fails(t, s.give(s.server, state{}), "no new process is waiting")
	from := s.dial()
	for _, size := range []int{0, 1, maxUnread, 24_000} {
		outcome := make(chan error, 1)
		sent := state{Remote: "1.2.3.4:5", Unread: []byte(strings.Repeat("\xff", size))}
		go func() { outcome <- s.give(s.server, sent) }()
		c, got, err := take(from)
		if err := errors.Join(err, <-outcome); err != nil {
			t.Fatal(err)
		}
		if got.Remote != sent.Remote || string(got.Unread) != string(sent.Unread) {
			t.Errorf("state of %d bytes: got %+.60v", size, got)
		}
		s.isServed(c)
	}
}

// An offer that fits no record is not sent: the other side hears nothing, and the conversation goes on.
func TestOfferThatDoesNotFit(t *testing.T) {
	s := newSession(t, patience)
	from := s.dial()
	fails(t, s.give(s.server, state{Unread: make([]byte, 25_000)}), "a record holds")
	outcome, m, fds := s.offered(from)
	closeFDs(fds)
	if string(m.State.Unread) != "read ahead" {
		t.Errorf("received %+v", m)
	}
	says(t, from, message{Type: "taken"})
	if err := <-outcome; err != nil {
		t.Error(err)
	}
}

// What the new process may say or do instead of taking the connection. In every case the old one
// knows whose it is, and does not wait for long where nobody can answer.
func TestGiveOutcome(t *testing.T) {
	for name, o := range map[string]struct {
		answer func(s session, to *socket.Conn)
		want   string // of give; "": it is given
		after  string // to the next give
	}{
		"taken":             {func(s session, to *socket.Conn) { says(s.T, to, message{Type: "taken"}) }, "", "again"},
		"taken, then death": {func(s session, to *socket.Conn) { says(s.T, to, message{Type: "taken"}); to.Close() }, "", "nobody"},
		"refused":           {func(s session, to *socket.Conn) { says(s.T, to, message{Type: "refused", Reason: "no\x1b"}) }, `refused: "no\x1b"`, "again"},
		"death":             {func(s session, to *socket.Conn) { to.Close() }, "no new process is waiting", "nobody"},
		"a hello":           {func(s session, to *socket.Conn) { says(s.T, to, message{Type: "hello"}) }, `broke the protocol: it answered "hello"`, "nobody"},
		"nonsense":          {func(s session, to *socket.Conn) { to.Write([]byte("nonsense")) }, "broke the protocol", "nobody"},
		"too long":          {func(s session, to *socket.Conn) { to.Write(make([]byte, maxRecord+1)) }, "MSG_TRUNC", "nobody"},
		"taken with a gift": {func(s session, to *socket.Conn) { says(s.T, to, message{Type: "taken"}, 0) }, "1 descriptors", "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, patience)
			to := s.dial()
			outcome, _, fds := s.offered(to)
			closeFDs(fds)
			o.answer(s, to)
			if err := <-outcome; o.want == "" && err != nil {
				t.Error(err)
			} else if o.want != "" {
				fails(t, err, o.want)
			}
			if o.after == "nobody" {
				fails(t, s.give(s.server, state{}), "no new process is waiting")
				return
			}
			outcome, _, fds = s.offered(to)
			closeFDs(fds)
			says(t, to, message{Type: "taken"})
			if err := <-outcome; err != nil {
				t.Error(err)
			}
		})
	}
}

// The first in line has died without an answer: the next one gets the connection.
func TestNextInLine(t *testing.T) {
	s := newSession(t, patience)
	first, second, third := s.dial(), s.dial(), s.dial()
	first.Close()
	outcome, _, fds := s.offered(second)
	closeFDs(fds)
	second.Close() // with the offer in its hands
	c, _, err := take(third)
	if err := errors.Join(err, <-outcome); err != nil {
		t.Fatal(err)
	}
	s.isServed(c)
}

// The old process tires of waiting. The new one, which wakes up late, learns that, and does not
// serve; nor does it stay in line.
func TestWithdraw(t *testing.T) {
	s := newSession(t, 10*time.Millisecond)
	from := s.dial()
	err := s.give(s.server, state{})
	for ; errors.Is(err, os.ErrDeadlineExceeded); err = s.give(s.server, state{}) {
		s.timeout *= 2 // a slow machine: it could not even send the offer
	}
	fails(t, err, "did not answer within ")
	fails(t, s.give(s.server, state{}), "no new process is waiting")
	_, _, err = take(from)
	fails(t, err, "gave up on this process")
	from.Close()
	next := s.dial()
	s.timeout = patience
	c := make(chan *socket.Conn, 1)
	go func() { taken, _, _ := take(next); c <- taken }()
	if err := s.give(s.server, state{}); err != nil { // nobody has touched it
		t.Error(err)
	}
	s.isServed(<-c)
}

// The old process dies with its offer unanswered: the connection is the new one's, which cannot say
// so any more. If withdraw is in the queue, it is not.
func TestOrphan(t *testing.T) {
	for _, withdrawn := range []bool{false, true} {
		for _, unread := range []bool{false, true} { // then what comes first is ECONNRESET
			t.Run(fmt.Sprint(withdrawn, unread), func(t *testing.T) {
				s := newSession(t, patience)
				from := s.dial()
				if err := s.accept(); err != nil {
					t.Fatal(err)
				}
				s.offers(message{})
				if unread {
					says(t, from, message{Type: "refused"})
				}
				if withdrawn {
					says(t, s.first, message{Type: "withdraw", Reason: "late"})
				}
				s.drop()
				c, _, err := take(from)
				if withdrawn {
					fails(t, err, "late")
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				s.isServed(c)
				if _, _, err := take(from); !errors.Is(err, errGone) {
					t.Errorf("then it takes %v, want that the old process is gone", err)
				}
			})
		}
	}
}

// offers sends an offer without waiting for the answer. What m says is not filled in.
func (s session) offers(m message) {
	s.Helper()
	if m.Type == "" {
		m.Type = "offer"
	}
	fd, cookie, err := identify(s.server)
	if err != nil {
		s.Fatal(err)
	}
	if m.FD == 0 {
		m.FD = fd
	}
	if m.Cookie == 0 {
		m.Cookie = cookie
	}
	if err := sendOffer(s.first, m, s.server); err != nil {
		s.Fatal(err)
	}
}

// An offer leaves no room in the queue to withdraw it. The old side must not go on before it has: a
// new side that wakes up later would take the connection for an orphan.
func TestWithdrawWaitsForRoom(t *testing.T) {
	s := newSession(t, patience)
	from := s.dial()
	if err := s.accept(); err != nil {
		t.Fatal(err)
	}
	if err := s.first.SetsockoptInt(unix.SOL_SOCKET, unix.SO_SNDBUF, 11500); err != nil {
		t.Fatal(err)
	}
	s.offers(message{content: content{State: state{Unread: make([]byte, maxUnread)}}})
	result := make(chan error, 1)
	go func() { result <- withdraw(s.first, errors.New("late")) }()
	select {
	case err := <-result:
		t.Fatalf("the old side has gone on (%v), and the new side knows nothing of it", err)
	case <-time.After(100 * time.Millisecond):
	}
	c, _, err := take(from)
	if oldHasIt, newHasIt := <-result != nil, err == nil; oldHasIt == newHasIt {
		t.Errorf("old side has the connection: %v; new side: %v (%v)", oldHasIt, newHasIt, err)
	}
	if err == nil {
		s.isServed(c)
	}
}

// drain finds a message among anything else, and closes what came with it.
func TestDrain(t *testing.T) {
	for _, there := range []bool{false, true} {
		t.Run(fmt.Sprint(there), func(t *testing.T) {
			s := newSession(t, patience)
			to := s.dial()
			if err := s.accept(); err != nil {
				t.Fatal(err)
			}
			says(t, to, message{Type: "refused"}, 0, 1, 2)
			to.Write([]byte("nonsense"))
			to.Write(make([]byte, maxRecord+1))
			if there {
				says(t, to, message{Type: "taken"}, 0)
			}
			to.Write([]byte("{}"))
			to.Close()
			s.first.SetReadDeadline(time.Unix(1, 0)) // half of the queue would prove nothing
			if found := drain(s.first, "taken"); found != nil != there {
				t.Errorf("found %+v, want %v", found, there)
			}
		})
	}
}

// An offer that is not what it says is refused, in words, and closes what came with it. The
// conversation goes on.
func TestVerify(t *testing.T) {
	s := newSession(t, patience)
	from := s.dial()
	if err := s.accept(); err != nil {
		t.Fatal(err)
	}
	_, cookie, err := identify(s.server)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := tcpPair(t)
	socketOf := func(domain, kind int) int {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	number := func(c *net.TCPConn) int {
		fd, _, err := identify(c)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	listener := socketOf(unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	offer := message{Type: "offer", content: content{Cookie: cookie}}
	good := number(s.server)
	result := make(chan *socket.Conn, 1)
	go func() {
		c, _, err := take(from)
		if err != nil {
			t.Error(err)
		}
		result <- c
	}()
	for _, lie := range []struct {
		name string
		m    message
		fds  []int
		why  string
	}{
		{"no descriptor", offer, nil, "0 descriptors"},
		{"two", offer, []int{good, good}, "2 descriptors"},
		{"a file", offer, []int{0}, "not a TCP socket"},
		{"UDP", offer, []int{socketOf(unix.AF_INET, unix.SOCK_DGRAM)}, "not a TCP socket: SO_PROTOCOL is 17"},
		{"unix", offer, []int{socketOf(unix.AF_UNIX, unix.SOCK_STREAM)}, "not a TCP socket"},
		{"a listener", offer, []int{listener}, "not connected"},
		{"not connected", offer, []int{socketOf(unix.AF_INET6, unix.SOCK_STREAM)}, "not connected"},
		{"another connection", offer, []int{number(other)}, "another socket"},
		{"no cookie", message{Type: "offer"}, []int{good}, "another socket"},
		{"no type", message{content: content{Cookie: cookie}}, []int{good}, `unexpected message ""`},
		{"another type", message{Type: "hello"}, []int{good}, `unexpected message "hello"`},
	} {
		says(t, s.first, lie.m, lie.fds...)
		s.first.SetDeadline(time.Now().Add(patience))
		if m := hears(t, s.first, "refused"); !strings.Contains(m.Reason, lie.why) {
			t.Errorf("%s: refused with %q, want %q", lie.name, m.Reason, lie.why)
		}
	}
	for _, record := range []string{"nonsense", "[]", strings.Repeat("x", maxRecord+1)} {
		if err := sendFDs(s.first, []byte(record), good); err != nil {
			t.Fatal(err)
		}
		if m := hears(t, s.first, "refused"); !strings.Contains(m.Reason, "bad record") {
			t.Errorf("%.20q: refused with %q", record, m.Reason)
		}
	}
	s.offers(message{})
	hears(t, s.first, "taken")
	s.isServed(<-result)
}

// Whenever the other side closes, a send says that it is gone, and then so does a receipt. Older
// kernels have their own words for it.
func TestSendRacesClose(t *testing.T) {
	rounds := 50
	if long() {
		rounds = 5000
	}
	for range rounds {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		here, hereErr := socket.New(fds[0], "here")
		there, thereErr := socket.New(fds[1], "there")
		if err := errors.Join(hereErr, thereErr); err != nil {
			t.Fatal(err)
		}
		go there.Close()
		for err == nil {
			err = sendMessage(here, message{Type: "taken"})
		}
		_, _, end := receiveMessage(here, 0)
		if !errors.Is(err, errGone) || !errors.Is(end, errGone) {
			t.Fatalf("send: %v; receive: %v", err, end)
		}
		here.Close()
	}
}

// The time-out strikes while taken is on its way. Whatever each side sees, exactly one of them must
// end up with the connection.
func TestTakenRacesWithdraw(t *testing.T) {
	s := newSession(t, 200*time.Microsecond)
	rounds, taken := 150, 0
	if long() {
		rounds = 5000
	}
	for range rounds {
		from, err := dialControl(s.path)
		if err != nil {
			t.Fatal(err)
		}
		newHasIt := make(chan bool, 1)
		go func() {
			c, _, err := take(from)
			if err == nil {
				c.Close()
			}
			newHasIt <- err == nil
		}()
		failure := s.give(s.server, state{})
		if s.first != nil { // or the new side would wait for the next offer, if this one was not sent
			s.drop()
		}
		if oldHasIt, newHasIt := failure != nil, <-newHasIt; oldHasIt == newHasIt {
			t.Fatalf("old side has the connection: %v (%v); new side: %v", oldHasIt, failure, newHasIt)
		}
		if failure == nil {
			taken++
			s.timeout -= s.timeout / 20 // steer towards the moment at which both are as likely
		} else {
			s.timeout += s.timeout/20 + 1
		}
		from.Close()
	}
	t.Logf("%d of %d taken; the last time-out was %v", taken, rounds, s.timeout)
}
