//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
	c := knock(t, path)
	if _, err := greet(t.Context(), c, 0, sameUserOrRoot); err != nil {
		t.Fatal(err)
	}
	return c
}

// knock connects, and says nothing.
func knock(t *testing.T, path string) *socket.Conn {
	t.Helper()
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(c) })
	return c
}

// host waits for the new process, and lets greet say hello to it.
func host(t *testing.T, path string, greet func(*socket.Conn) error) (new *process, l *controlListener, c *socket.Conn) {
	t.Helper()
	l, err := listenControl(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(l) })
	new = startDoomed(t, path, nil)
	c, err = l.accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(c) })
	if err := greet(c); err != nil {
		t.Fatal(err)
	}
	return new, l, c
}

func politely(c *socket.Conn) error {
	_, err := greet(context.Background(), c, 1, sameUser)
	return err
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

// takeUntil takes what is offered, until offer id comes, which is forgotten.
func takeUntil(t *testing.T, c *socket.Conn, id uint64) (taken stolen) {
	t.Helper()
	for {
		m, fds := receive(t, c, offerFDs)
		if m.ID == id {
			if err := closeFDs(fds); err != nil {
				t.Fatal(err)
			}
			return taken
		}
		s, err := (&taker{control: c}).unpack(m.content, fds)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeQuietly(s) }) // it may be closed already
		taken = s
		send(t, c, message{Type: "taken", ID: m.ID})
	}
}

// The offers when there is one connection.
var offers = []string{1: kindListeners, 2: kindConnections, 3: kindDone}

func TestLyingNewProcess(t *testing.T) {
	for name, lie := range map[string]struct {
		tell func(t *testing.T, c *socket.Conn, id uint64)
		told string // what the old process then says of it; ID and NEXT are offers
	}{
		"answers nothing": {
			func(*testing.T, *socket.Conn, uint64) {},
			`did not answer within TIME`,
		},
		"closes": {
			func(_ *testing.T, c *socket.Conn, _ uint64) { closeQuietly(c) },
			`went away without taking it`,
		},
		"garbage": {
			func(t *testing.T, c *socket.Conn, _ uint64) { sendRaw(t, c, "\x1b[2J garbage") },
			`broke the protocol: invalid character '\x1b' looking for beginning of value`,
		},
		"an offer that will come": {
			func(t *testing.T, c *socket.Conn, id uint64) { send(t, c, message{Type: "taken", ID: id + 1}) },
			`broke the protocol: unexpected "taken" for offer NEXT`,
		},
		"no offer": {
			func(t *testing.T, c *socket.Conn, _ uint64) { send(t, c, message{Type: "taken"}) },
			`broke the protocol: unexpected "taken" for offer 0`,
		},
		"a type that does not exist": {
			func(t *testing.T, c *socket.Conn, id uint64) { send(t, c, message{Type: "borrowed", ID: id}) },
			`broke the protocol: unexpected "borrowed" for offer ID`,
		},
		"an offer of its own": {
			func(t *testing.T, c *socket.Conn, id uint64) {
				send(t, c, message{Type: "offer", ID: id, content: content{Kind: kindDone}})
			},
			`broke the protocol: unexpected "offer" for offer ID`,
		},
		"withdraws": {
			func(t *testing.T, c *socket.Conn, id uint64) { send(t, c, message{Type: "withdraw", ID: id}) },
			`broke the protocol: unexpected "withdraw" for offer ID`,
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
				send(t, c, message{Type: "refused", ID: id, Reason: "\x1b[2J\ntaken over"})
			},
			`refused: "\x1b[2J\ntaken over"`,
		},
	} {
		for id, kind := range offers[1:] {
			id := uint64(id + 1)
			if short() && uint64(len(name))%6 != id || strings.Contains(lie.told, "TIME") && !long {
				continue // some
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				path := meetingPlace(t)
				timeout := patience
				if strings.Contains(lie.told, "TIME") {
					timeout = silence(t)
				}
				old := startServer(t, path, "-takeover-timeout", timeout.String())
				clients := gather(t, old.addr(), 1)
				before := len(old.descriptors())

				liar := join(t, path)
				has := takeUntil(t, liar, id)
				lie.tell(t, liar, id)
				told := strings.NewReplacer("ID", fmt.Sprint(id), "NEXT", fmt.Sprint(id+1), "TIME", timeout.String()).Replace(lie.told)
				old.logged(fmt.Sprintf(`not taken over: pid %d .* %s; connections moved: %d, still here: %d$`, os.Getpid(), regexp.QuoteMeta(told), len(has.Cookies), 1-len(has.Cookies)))
				if name != "closes" {
					if m, _ := receive(t, liar, 0); m.Type != "withdraw" {
						t.Errorf("got %+v, want to be told that it is over", m)
					}
				}
				for i := range has.Cookies { // what it has taken, the liar has
					expectSole(t, has.sockets[i], clients[0], has.States[i].In)
					clients, before = nil, before-1
				}
				if served := clients.goOn(t); len(served) != len(clients) {
					t.Error("the connection has ended")
				}
				eventually(t, "the old process has no more descriptors than before", func() bool { return len(old.descriptors()) == before })
				dial(t, old.addr()).echoed("a new client")

				next := startNext(t, path)
				expectEnd(t, old)
				if served := clients.goOn(t); len(served) != len(clients) {
					t.Error("the connection has ended with the next takeover")
				}
				dial(t, next.addr()).echoed("a new client")
			})
		}
	}
}

// expectSole expects that nobody but this process has a client's socket.
func expectSole(t *testing.T, f *os.File, c *client, in []byte) {
	t.Helper()
	if string(in) != "half" {
		t.Errorf("it came with %q", in)
	}
	c.send("line\n")
	got := make([]byte, 5)
	if n, err := f.Read(got); err != nil || string(got[:n]) != "line\n" {
		t.Errorf("read %q and %v", got[:n], err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	c.ended()
}

// A second taken for the same offer breaks the protocol, but does not undo the first.
func TestTakenTwice(t *testing.T) {
	path := meetingPlace(t)
	old := startServer(t, path)
	clients := gather(t, old.addr(), 1)
	liar := join(t, path)
	m, fds := receive(t, liar, offerFDs)
	s, err := (&taker{}).unpack(m.content, fds)
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(s)
	send(t, liar, message{Type: "taken", ID: 1})
	send(t, liar, message{Type: "taken", ID: 1})
	old.logged(`not taken over: .* broke the protocol: unexpected "taken" for offer 1; connections moved: 0, still here: 1$`)
	clients.goOn(t)
	startNext(t, path)
	expectEnd(t, old)
	clients.goOn(t)
}

// When all has been taken, nothing that the new process says can undo it.
func TestLieAfterTheEnd(t *testing.T) {
	path := meetingPlace(t)
	old := startServer(t, path)
	liar := join(t, path)
	takeUntil(t, liar, 2) // without a connection, that is done
	send(t, liar, message{Type: "taken", ID: 2})
	send(t, liar, message{Type: "refused", ID: 2, Reason: "I have changed my mind"})
	closeQuietly(liar)
	expectEnd(t, old)
}

// Whoever cannot even say hello does not get anything, and the old process goes on.
func TestLyingHello(t *testing.T) {
	for name, lie := range map[string]struct {
		say  func(t *testing.T, c *socket.Conn)
		told string
	}{
		"version 1":    {func(t *testing.T, c *socket.Conn) { sayHello(t, c, hello{Type: "hello", Min: 1, Max: 1}) }, `it speaks versions 1 to 1 of the protocol, this process 2 to 2: use two builds that overlap`},
		"version 9":    {func(t *testing.T, c *socket.Conn) { sayHello(t, c, hello{Type: "hello", Min: 9, Max: 9}) }, `it speaks versions 9 to 9 of the protocol, this process 2 to 2: use two builds that overlap`},
		"no version":   {func(t *testing.T, c *socket.Conn) { sayHello(t, c, hello{Type: "hello"}) }, `it speaks versions 0 to 0 of the protocol`},
		"another word": {func(t *testing.T, c *socket.Conn) { sayHello(t, c, hello{Type: "taken", Min: 2, Max: 2}) }, `it began with "taken"`},
		"refuses":      {func(t *testing.T, c *socket.Conn) { sayHello(t, c, hello{Type: "refused", Reason: "\x1b[2J"}) }, `it refused: "\x1b[2J"`},
		"garbage":      {func(t *testing.T, c *socket.Conn) { sendRaw(t, c, "garbage", 0, 0, 0) }, `"garbage" is not a hello`},
		"too long":     {func(t *testing.T, c *socket.Conn) { sendRaw(t, c, strings.Repeat("x", maxRecord)) }, `longer than 4096 bytes`},
		"nothing":      {func(*testing.T, *socket.Conn) {}, `it said nothing for 2s`},
	} {
		if short() && len(name)%3 != 1 || name == "nothing" && !long {
			continue // some
		}
		t.Run("to the old/"+name, func(t *testing.T) {
			t.Parallel()
			path := meetingPlace(t)
			old := startServer(t, path)
			clients := gather(t, old.addr(), 1)
			before := len(old.descriptors())
			lie.say(t, knock(t, path))
			old.logged(regexp.QuoteMeta(lie.told))
			eventually(t, "it has no more descriptors than before", func() bool { return len(old.descriptors()) == before })
			startNext(t, path)
			expectEnd(t, old)
			clients.goOn(t)
		})
		t.Run("to the new/"+name, func(t *testing.T) {
			t.Parallel()
			new, _, _ := host(t, meetingPlace(t), func(c *socket.Conn) error { lie.say(t, c); return nil })
			if status := new.status(); status != 1 {
				t.Errorf("exit status %d, want 1", status)
			}
			new.logged(regexp.QuoteMeta(lie.told))
		})
	}
}

func sayHello(t *testing.T, c *socket.Conn, h hello) {
	t.Helper()
	if err := sendHello(t.Context(), c, h); err != nil {
		t.Fatal(err)
	}
}

// Only the same user may take over. The folder's mode is the first lock, and is open here.
func TestAnotherUser(t *testing.T) {
	path := meetingPlace(t)
	old := startServer(t, path)
	clients := gather(t, old.addr(), 1)
	if err := errorOf(os.Chmod(filepath.Dir(path), 0o777), os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	new := asNobody(t, "-addr", "127.0.0.1:0", "-control", path)
	if status := new.status(); status != 1 {
		t.Errorf("new: exit status %d, want 1", status)
	}
	new.logged(`it refused: "another user's process: uid 65534, not uid 0"`)
	old.logged(fmt.Sprintf(`refused pid %d \(uid 65534, gid 65534\): another user's process`, new.pid()))
	clients.goOn(t)
	startNext(t, path)
	expectEnd(t, old)
	clients.goOn(t)
}

// numberOf is the descriptor number of a file that the test keeps open meanwhile.
func numberOf(t testing.TB, c syscall.Conn) (number int) {
	t.Helper()
	if err := borrow(c, func(fd int) error { number = fd; return nil }); err != nil {
		t.Fatal(err)
	}
	return number
}

// sealed is a memfd of that content, and those seals.
func sealed(t *testing.T, content string, seals int) int {
	t.Helper()
	f, err := createMemfd("lie")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(f) })
	_, err = f.WriteString(content)
	_, sealErr := unix.FcntlInt(uintptr(numberOf(t, f)), unix.F_ADD_SEALS, seals)
	if err := errors.Join(err, sealErr); err != nil {
		t.Fatal(err)
	}
	return numberOf(t, f)
}

// packed is the sealed luggage, as an honest process makes it.
func packed(t *testing.T, l luggage) int {
	t.Helper()
	f, err := sealValue("luggage", l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(f) })
	return numberOf(t, f)
}

func cookieOf(t *testing.T, fd int) uint64 {
	t.Helper()
	id, err := identifyFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	return id.cookie
}

// lie is an offer that the new process must refuse, and the reason that it must give.
type lie struct {
	what    string
	content content
	fds     []int
	reason  string
}

// A new process refuses what is not as it should be, whatever it is, and at any time. It loses no
// descriptor, and the truth is still welcome.
func TestLyingOldProcess(t *testing.T) {
	server, c := serverSide(t)
	tcp, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(tcp)
	bare := func(domain, typ int) int {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) }) // nothing to lose
		return fd
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(null)
	udp, unbound, datagrams := bare(unix.AF_INET, unix.SOCK_DGRAM), bare(unix.AF_INET, unix.SOCK_STREAM), bare(unix.AF_UNIX, unix.SOCK_DGRAM)

	path := meetingPlace(t)
	new, l, liar := host(t, path, politely)
	control, listener, conn := numberOf(t, l), numberOf(t, tcp), numberOf(t, server)
	listed := func(fds ...int) (l luggage) {
		for _, fd := range fds {
			l.Listeners = append(l.Listeners, listenerState{Cookie: cookieOf(t, fd)})
		}
		return l
	}
	connected := func(fds ...int) (l luggage) {
		for _, fd := range fds {
			l.Cookies = append(l.Cookies, cookieOf(t, fd))
		}
		return l
	}
	// offered is an offer, true or not, whose luggage is l.
	offered := func(what, kind string, l luggage, reason string, fds ...int) lie {
		return lie{what, content{kind, len(fds)}, append([]int{packed(t, l)}, fds...), reason}
	}
	strange := luggage{Cookies: []uint64{1}}
	full := make([]int, maxSockets)
	for i := range full {
		full[i] = conn
	}
	// Lies about the message and its luggage are lies at any time.
	lies := []lie{
		{"no descriptor", content{kindConnections, 1}, nil, `fewer descriptors than expected: 0, not 1 and the luggage`},
		{"too few", content{kindConnections, 2}, []int{packed(t, connected(conn, conn)), conn}, `fewer descriptors than expected: 2, not 2 and the luggage`},
		{"a negative number", content{kindConnections, -1}, nil, `the luggage`},
		{"no luggage", content{kindConnections, 1}, []int{conn, conn}, `luggage: not a memfd: fcntl F_GET_SEALS: invalid argument`},
		{"a device", content{kindConnections, 1}, []int{numberOf(t, null), conn}, `luggage: not a memfd: fcntl F_GET_SEALS: invalid argument`},
		{"unsealed", content{kindConnections, 1}, []int{sealed(t, `{}`, 0), conn}, `luggage: its sender could still change it: its seals are 0x`},
		{"not sealed for good", content{kindConnections, 1}, []int{sealed(t, `{}`, seals&^unix.F_SEAL_SEAL), conn}, `luggage: its sender could still change it: its seals are 0x`},
		{"nothing in it", content{kindConnections, 1}, []int{sealed(t, ``, seals), conn}, `luggage: unexpected end of JSON input`},
		{"cut short", content{kindConnections, 1}, []int{sealed(t, `{"cookies":[1`, seals), conn}, `luggage: unexpected end of JSON input`},
		{"not an object", content{kindConnections, 1}, []int{sealed(t, `[1]`, seals), conn}, `luggage: json: cannot unmarshal array into Go value`},
		{"a cookie that is no number", content{kindConnections, 1}, []int{sealed(t, `{"cookies":[-1]}`, seals), conn}, `luggage: json: cannot unmarshal number -1`},
		{"too large", content{kindConnections, 1}, []int{sealed(t, strings.Repeat(" ", maxSealed+1), seals), conn}, `luggage: 16777217 bytes are more than 16777216`},
		offered("more than came", kindConnections, connected(conn, conn), `the luggage speaks of 2 sockets, and 1 came`, conn),
		offered("fewer than came", kindConnections, connected(conn), `the luggage speaks of 1 sockets, and 2 came`, conn, conn),
		offered("252 without a word", kindConnections, luggage{}, `the luggage speaks of 0 sockets, and 252 came`, full...),
		offered("252, and a word too many", kindConnections, connected(append(full, conn)...), `the luggage speaks of 253 sockets, and 252 came`, full...),
		offered("the cookie of another", kindConnections, strange, fmt.Sprintf(`connection 0: another socket: its cookie is %d, the luggage says 1`, cookieOf(t, conn)), conn),
		offered("the last of 252", kindConnections, connected(append(full[1:], control)...), `connection 251: another socket`, full...),
		offered("a file", kindConnections, connected(conn), `connection 0: getsockopt SO_PROTOCOL: socket operation on non-socket`, numberOf(t, null)),
		offered("a UDP socket", kindConnections, connected(udp), `connection 0: not a TCP connection: SO_PROTOCOL is 17`, udp),
		offered("a unix socket", kindConnections, connected(datagrams), `connection 0: not a TCP connection: SO_PROTOCOL is 0`, datagrams),
		offered("listeners among connections", kindConnections, luggage{Listeners: listed(listener).Listeners, Cookies: connected(conn).Cookies}, `"connections" with 1 listeners and 1 connections`, listener, conn),
		offered("connections among listeners", kindListeners, luggage{Listeners: listed(control).Listeners, Cookies: connected(conn).Cookies}, `"listeners" with 1 listeners and 1 connections`, control, conn),
		offered("done, and one more", kindDone, connected(conn), `"done" with 0 listeners and 1 connections`, conn),
		offered("a kind that does not exist", "everything", connected(conn), `"everything" with 0 listeners and 1 connections`, conn),
		offered("one that does not listen", kindListeners, listed(control, unbound), `listener 1: it does not listen`, control, unbound),
		offered("a connection for a listener", kindListeners, listed(control, conn), `listener 1: it does not listen`, control, conn),
		offered("a file for a listener", kindListeners, listed(control, listener), `listener 1: getsockopt SO_ACCEPTCONN: socket operation on non-socket`, control, numberOf(t, null)),
		offered("another listener", kindListeners, listed(control, control), `listener 1: another socket: `, control, listener),
		offered("no listener at all", kindListeners, luggage{}, `"listeners" with 0 listeners and 0 connections`),
		offered("no control socket", kindListeners, listed(listener), `listener 0: in its place is a socket of another kind: SO_DOMAIN is 2`, listener),
		offered("two control sockets", kindListeners, listed(control, control), `listener 1: in its place is a socket of another kind: SO_DOMAIN is 1`, control, control),
	}

	asked := uint64(0)
	refused := func(what string, id uint64, had int, reason string) {
		t.Helper()
		answer, _ := receive(t, liar, 0)
		if answer.Type != "refused" || answer.ID != id || !strings.Contains(answer.Reason, reason) || strings.Contains(answer.Reason, "\n") {
			t.Errorf("%s: got %+v, want refused: %s", what, answer, reason)
		}
		asked++
		eventually(t, "one line about "+what, func() bool { return len(new.err.all(`refused offer`)) == int(asked) })
		if now := len(new.descriptors()); now > had { // a client may have been leaving
			t.Errorf("%s: it has %d descriptors, and had %d", what, now, had)
		}
	}
	tellAll := func() {
		t.Helper()
		had := len(new.descriptors())
		for _, lie := range lies {
			send(t, liar, message{Type: "offer", ID: asked, content: lie.content}, lie.fds...)
			refused(lie.what, asked, had, lie.reason)
		}
		send(t, liar, message{Type: "taken", ID: asked}, conn)
		refused("no offer", asked, had, `unexpected "taken"`)
		sendRaw(t, liar, strings.Repeat(" ", maxRecord+1), conn)
		refused("a record too long", 0, had, `payload truncated (MSG_TRUNC): the message is longer than the buffer`)
		sendRaw(t, liar, "garbage", full...)
		refused("garbage", 0, had, `invalid character 'g' looking for beginning of value`)
	}
	tell := func(truth lie) {
		t.Helper()
		send(t, liar, message{Type: "offer", ID: 1000, content: truth.content}, truth.fds...)
		if answer, _ := receive(t, liar, 0); answer.Type != "taken" || answer.ID != 1000 {
			t.Fatalf("got %+v, want taken", answer)
		}
	}

	new.logged(`taking over from`)
	tellAll()
	all := listed(control, listener)
	all.Listeners[0].Dev, all.Listeners[0].Ino, all.Listeners[1].Asked = l.file.dev, l.file.ino, "127.0.0.1:0"
	tell(offered("", kindListeners, all, "", control, listener))
	dial(t, tcp.Addr().String()).finish("") // it has begun to accept
	tellAll()
	session := connected(conn)
	session.States = map[int]state{0: {In: []byte("half a ")}, 1: {In: []byte("nobody's")}}
	tell(offered("", kindConnections, session, "", conn))
	c.send("line\n")
	c.expect("half a line")
	tellAll()
	tell(offered("", kindDone, luggage{}, ""))
	if got, want := new.addr(), tcp.Addr().String(); got != want {
		t.Errorf("it listens on %s, want %s", got, want)
	}
	dial(t, new.addr()).echoed("hello")
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	c.echoed("and on")
	c.finish("")
}

// Kinds out of turn end the conversation.
func TestOutOfTurn(t *testing.T) {
	for _, kind := range []string{kindConnections, kindDone} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			new, _, liar := host(t, meetingPlace(t), politely)
			send(t, liar, message{Type: "offer", ID: 1, content: content{Kind: kind}}, packed(t, luggage{}))
			if status := new.status(); status != 1 {
				t.Errorf("exit status %d, want 1", status)
			}
			new.logged(fmt.Sprintf(`broke the protocol: %q out of turn$`, kind))
		})
	}
}
