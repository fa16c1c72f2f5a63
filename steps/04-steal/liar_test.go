//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Peers that lie. The one that tells the truth is a real process; the liar is the test.

// join connects to the old process and says hello.
func join(t *testing.T, path string) *socket.Conn {
	t.Helper()
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(c) })
	if _, err := greet(t.Context(), c, sameUserOrRoot); err != nil {
		t.Fatal(err)
	}
	return c
}

// host waits for the new process and says hello.
func host(t *testing.T, path string, started func()) *socket.Conn {
	t.Helper()
	l, err := listenControl(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(l) })
	started()
	c, err := l.accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(c) })
	p, err := greet(t.Context(), c, sameUser)
	if err != nil {
		t.Fatal(err)
	}
	letPeerFetch(t, p)
	return c
}

func receive(t *testing.T, c *socket.Conn, most int) (message, []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, fds, err := receiveMessage(ctx, c, most)
	if err != nil {
		t.Fatal(err)
	}
	return m, fds
}

func send(t *testing.T, c *socket.Conn, m message, fds ...int) {
	t.Helper()
	if err := sendMessage(t.Context(), c, m, fds...); err != nil {
		t.Fatal(err)
	}
}

func sendRaw(t *testing.T, c *socket.Conn, record string, fds ...int) {
	t.Helper()
	if err := sendFDs(t.Context(), c, []byte(record), fds...); err != nil {
		t.Fatal(err)
	}
}

func TestLyingNewProcess(t *testing.T) {
	for name, lie := range map[string]struct {
		tell func(t *testing.T, c *socket.Conn, id uint64)
		told string // what the client reads, after "not stolen: pid N (...) "
	}{
		"answers nothing": {
			func(*testing.T, *socket.Conn, uint64) {},
			`did not answer within 500ms`,
		},
		"closes": {
			func(_ *testing.T, c *socket.Conn, _ uint64) { closeQuietly(c) },
			`went away without taking it`,
		},
		"garbage": {
			func(t *testing.T, c *socket.Conn, _ uint64) { sendRaw(t, c, "\x1b[2J garbage") },
			`broke the protocol: invalid character '\x1b' looking for beginning of value`,
		},
		"the wrong id": {
			func(t *testing.T, c *socket.Conn, id uint64) { send(t, c, message{Type: "taken", ID: id + 1}) },
			`broke the protocol: unexpected "taken" for offer 2`,
		},
		"a type that does not exist": {
			func(t *testing.T, c *socket.Conn, id uint64) { send(t, c, message{Type: "borrowed", ID: id}) },
			`broke the protocol: unexpected "borrowed" for offer 1`,
		},
		"an answer with a descriptor": {
			func(t *testing.T, c *socket.Conn, id uint64) { send(t, c, message{Type: "taken", ID: id}, 0) },
			`broke the protocol: more descriptors than expected: 1, not 0`,
		},
		"a record too long": {
			func(t *testing.T, c *socket.Conn, _ uint64) { sendRaw(t, c, strings.Repeat(" ", maxRecord+1)) },
			`broke the protocol: payload truncated (MSG_TRUNC): the message is longer than the buffer`,
		},
		"refuses with terminal codes": {
			func(t *testing.T, c *socket.Conn, id uint64) {
				send(t, c, message{Type: "refused", ID: id, Reason: "\x1b[2J\n* stolen"})
			},
			`refused: "\x1b[2J\n* stolen"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := meetingPlace(t)
			old := startOld(t, path, "-timeout", "500ms")
			c := dial(t, old.addr())
			c.echoed("hello")
			before := len(old.descriptors())

			liar := join(t, path)
			c.send("STEAL\nnext\n")
			m, fds := receive(t, liar, offerFDs)
			if err := closeFDs(fds); err != nil {
				t.Fatal(err)
			}
			lie.tell(t, liar, m.ID)
			c.expect(fmt.Sprintf("* not stolen: pid %d (uid %d, gid %d) %s", os.Getpid(), os.Getuid(), os.Getgid(), lie.told))
			c.expect("next")
			closeQuietly(liar)
			eventually(t, "the old process has no more descriptors than before", func() bool { return len(old.descriptors()) == before })

			new := startNew(t, path)
			c.send("STEAL\n")
			c.expect(stolenLine(old, new))
		})
	}
}

// A second taken for the same offer breaks the protocol, but does not undo the first.
func TestTakenTwice(t *testing.T) {
	mayCarry(t)
	path := meetingPlace(t)
	old := startOld(t, path)
	c, other := dial(t, old.addr()), dial(t, old.addr())
	liar := join(t, path)
	c.send("STEAL\n")
	m, fds := receive(t, liar, offerFDs)
	fd, err := (&taker{control: liar}).fetchFD(m.content, fds)
	if err != nil {
		t.Fatal(err)
	}
	send(t, liar, message{Type: "taken", ID: m.ID})
	send(t, liar, message{Type: "taken", ID: m.ID})
	old.logged(`broke the protocol: unexpected "taken" for offer 1`)
	if m, _ := receive(t, liar, 0); m.Type != "withdraw" {
		t.Errorf("got %q, want to be told why it ends", m.Type)
	}
	conn, err := socket.New(fd, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	old.logged(`closing descriptor \d+: left to the new process`)
	if _, err := conn.Write([]byte("mine\n")); err != nil {
		t.Error(err)
	}
	c.expect("mine")
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	c.ended()
	other.send("STEAL\n")
	other.expect("* not stolen: no new process is waiting")
}

// serverSide is a TCP connection whose server is this test.
func serverSide(t testing.TB) (server *net.TCPConn, c *client) {
	t.Helper()
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(l)
	c = dial(t, l.Addr().String())
	server, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(server) })
	return server, c
}

// numberOf is the descriptor number of a connection that the test keeps open meanwhile.
func numberOf(t testing.TB, c syscall.Conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	number := -1
	if err := raw.Control(func(fd uintptr) { number = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return number
}

// lie is a message that the new process must refuse, and the reason that it must give.
type lie struct {
	what   string
	m      message
	fds    []int
	reason string
}

func TestLyingOldProcess(t *testing.T) {
	server, c := serverSide(t)
	id, err := identify(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(listener)
	bare := func(domain, typ int) int {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) }) // nothing to lose
		return fd
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(os.NewFile(uintptr(pipe[0]), "pipe"))
	defer closeQuietly(os.NewFile(uintptr(pipe[1]), "pipe"))

	path := meetingPlace(t)
	var new *process
	liar := host(t, path, func() { new = start(t, "-c", "-control", path) })
	new.logged(`waiting on `)
	before := len(new.descriptors())

	offer := message{Type: "offer", content: content{Cookie: id.cookie}}
	other := message{Type: "offer", content: content{Cookie: id.cookie + 1}}
	carried := func(what string, m message, fd int, reason string) lie {
		m, fds := carrying(m, fd)
		return lie{what, m, fds, reason}
	}
	live := id.fd
	lies := []lie{
		carried("no offer", message{Type: "taken"}, live, `unexpected "taken" for offer 1`),
		carried("a pipe", offer, pipe[0], `not a socket (mode 010000)`),
		carried("a UDP socket", offer, bare(unix.AF_INET, unix.SOCK_DGRAM), `not a TCP connection: SO_TYPE is 2`),
		carried("a unix socket", offer, bare(unix.AF_UNIX, unix.SOCK_STREAM), `not a TCP connection: SO_DOMAIN is 1`),
		carried("a listener", offer, numberOf(t, listener), `not a TCP connection: SO_ACCEPTCONN is 1`),
		carried("an unconnected socket", offer, bare(unix.AF_INET, unix.SOCK_STREAM), `not connected: getpeername: transport endpoint is not connected`),
		carried("another cookie", other, live, fmt.Sprintf(`another socket: its cookie is %d, the offer says %d`, id.cookie, id.cookie+1)),
		carried("a record too long", message{}, live, `payload truncated (MSG_TRUNC): the message is longer than the buffer`),
		carried("garbage", message{}, live, `invalid character 'g' looking for beginning of value`),
	}
	for i, lie := range append(lies, carriageLies(id.cookie, live)...) {
		switch lie.what {
		case "a record too long":
			sendRaw(t, liar, strings.Repeat(" ", maxRecord+1), lie.fds...)
		case "garbage":
			sendRaw(t, liar, "garbage", lie.fds...)
		default:
			lie.m.ID = uint64(i + 1)
			send(t, liar, lie.m, lie.fds...)
		}
		answer, _ := receive(t, liar, 0)
		if answer.Type != "refused" || answer.ID != lie.m.ID || answer.Reason != lie.reason {
			t.Errorf("%s: got %+v, want refused: %s", lie.what, answer, lie.reason)
		}
		eventually(t, "one line about "+lie.what, func() bool { return len(new.err.all(`refused offer`)) == i+1 })
		if now := len(new.descriptors()); now != before {
			t.Errorf("%s: it has %d descriptors, and had %d", lie.what, now, before)
		}
	}

	// The connection has survived all this, and the truth is still welcome.
	offer.ID = 100
	truth, fds := carrying(offer, live)
	send(t, liar, truth, fds...)
	if answer, _ := receive(t, liar, 0); answer.Type != "taken" || answer.ID != offer.ID {
		t.Fatalf("got %+v, want taken", answer)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	c.expect(fmt.Sprintf("* stolen: pid %d -> pid %d", os.Getpid(), new.pid()))
	c.echoed("hello")
}
