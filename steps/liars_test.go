//go:build linux

package steps

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Peers that lie. The one that tells the truth is a real process; the liar is this test, which has
// nothing but the system calls.

// message is a record of the protocol, as JSON has it.
type message struct {
	Type   string `json:"type"`
	FD     int    `json:"fd,omitempty"`
	Cookie uint64 `json:"cookie,omitempty"`
	State  struct {
		Unread []byte `json:"unread"`
	} `json:"state,omitzero"`
	Reason string `json:"reason,omitempty"`
}

// liar is this test's end of a control connection.
type liar struct {
	t  *testing.T
	fd int
}

// join connects to the old process, and may stay silent.
func join(t *testing.T, path string) *liar {
	t.Helper()
	l := newLiar(t)
	if err := unix.Connect(l.fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	return l
}

// host listens at path for the new process that s starts, and accepts it.
func host(t *testing.T, s step, path string) (l *liar, young *process) {
	t.Helper()
	listener := newLiar(t)
	if err := unix.Bind(listener.fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener.fd, 1); err != nil {
		t.Fatal(err)
	}
	young = s.young(t, path)
	fd := -1
	err := uninterrupted(func() (err error) {
		fd, _, err = unix.Accept4(listener.fd, unix.SOCK_CLOEXEC)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return newLiarOn(t, fd), young
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return newLiarOn(t, fd)
}

func newLiarOn(t *testing.T, fd int) *liar {
	t.Helper()
	l := &liar{t, fd}
	t.Cleanup(l.hangUp)
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	return l
}

// uninterrupted repeats a system call that waits, when a signal has come in between. Go sends itself
// some, and with SO_RCVTIMEO the kernel does not repeat it (signal(7)).
func uninterrupted(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func (l *liar) hangUp() {
	if l.fd >= 0 {
		unix.Close(l.fd) // a test may have done so before
	}
	l.fd = -1
}

func (l *liar) send(record string, fds ...int) {
	l.t.Helper()
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	err := uninterrupted(func() error { return unix.Sendmsg(l.fd, []byte(record), control, nil, unix.MSG_NOSIGNAL) })
	if err != nil {
		l.t.Fatalf("sendmsg: %v", err)
	}
}

func (l *liar) receive() (m message, fds []int) {
	l.t.Helper()
	record, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*253))
	var n, controlLen int
	err := uninterrupted(func() (err error) {
		n, controlLen, _, _, err = unix.Recvmsg(l.fd, record, control, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil || n == 0 {
		l.t.Fatalf("recvmsg: %d, %v", n, err)
	}
	if err := json.Unmarshal(record[:n], &m); err != nil {
		l.t.Fatalf("%q: %v", record[:n], err)
	}
	controls, err := unix.ParseSocketControlMessage(control[:controlLen])
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range controls {
		more, err := unix.ParseUnixRights(&c)
		if err != nil {
			l.t.Fatal(err)
		}
		fds = append(fds, more...)
	}
	return m, fds
}

// says makes a record of a message.
func (m message) says() string {
	record, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(record)
}

// TestLyingNewProcess: whatever the first in line answers, the client is served on, no descriptor
// leaks, and the next one in line gets what it asks for.
func TestLyingNewProcess(t *testing.T) {
	const broke = `broke the protocol: it answered `
	for name, lie := range map[string]struct {
		tell func(l *liar)
		told string // what the client reads, a pattern; "" is the end
	}{
		"garbage":           {func(l *liar) { l.send("\x1b[2J garbage") }, broke + `.*invalid character.*`},
		"a list":            {func(l *liar) { l.send("[]") }, broke + `.*`},
		"a record of one":   {func(l *liar) { l.send("7") }, broke + `.*`},
		"nothing of a type": {func(l *liar) { l.send("{}") }, broke + `"" .*`},
		"a record too long": {func(l *liar) { l.send(strings.Repeat(" ", 40<<10)) }, broke + `.*MSG_TRUNC.*`},
		"a descriptor":      {func(l *liar) { l.send(`{"type":"taken"}`, 0) }, broke + `.*1 descriptors, not 0.*`},
		"253 descriptors":   {func(l *liar) { l.send(`{"type":"taken"}`, make([]int, 253)...) }, broke + `.*253 descriptors, not 0.*`},
		"an unknown word":   {func(l *liar) { l.send(`{"type":"borrowed"}`) }, broke + `"borrowed" .*`},
		"an offer":          {func(l *liar) { l.send(`{"type":"offer"}`) }, broke + `"offer" .*`},
		"a withdraw":        {func(l *liar) { l.send(`{"type":"withdraw"}`) }, broke + `"withdraw" .*`},
		"refused":           {func(l *liar) { l.send(`{"type":"refused","reason":"\u001b[2J\nno"}`) }, `refused: "\\x1b\[2J\\nno"`},
		"two empty records": {func(l *liar) { l.send(""); l.send("") }, ""},
		"the end":           {func(l *liar) { l.hangUp() }, ""},
		"half the end":      {func(l *liar) { unix.Shutdown(l.fd, unix.SHUT_WR) }, ""},
		"taken, and closes": {func(l *liar) { l.send(`{"type":"taken"}`); l.hangUp() }, "gone"},
		"taken twice":       {func(l *liar) { l.send(`{"type":"taken"}`); l.send(`{"type":"taken"}`) }, "gone"},
		"empty, then taken": {func(l *liar) { l.send(""); l.send(`{"type":"taken"}`) }, "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, steals, func(t *testing.T, s step) {
				path := meetingPlace(t)
				old := s.old(t, path)
				c, other := dial(t, old.addr()), dial(t, old.addr())
				c.echoed("hello")
				other.echoed("hello")
				keepsFDs := old.keepsFDs()
				l := join(t, path)
				c.send("STEAL\nnext\n")
				m, fds := l.receive()
				if m.Type != "offer" || string(m.State.Unread) != "next\n" || len(fds) == 1 == s.pulls {
					t.Errorf("the offer is %+v with %d descriptors", m, len(fds))
				}
				lie.tell(l)
				for _, fd := range fds {
					unix.Close(fd) // the test's own
				}
				switch lie.told {
				case "gone":
					c.ended()
					c = dial(t, old.addr())
				case "":
					c.expect(nobodyWaits, "next")
				default:
					c.matches(fmt.Sprintf(`\* not stolen: pid %d \(uid %d\) `, os.Getpid(), os.Getuid()) + lie.told)
					c.expect("next")
				}
				l.hangUp()
				other.echoed("still here")
				young := s.young(t, path)
				c.stolen(old, young)
				c.finish("")
				// The second STEAL shows that the conversation goes on: with the one that is in line.
				other.stolen(old, young)
				d := dial(t, old.addr())
				d.echoed("hello")
				young.kill()
				d.send("STEAL\n")
				d.expect(nobodyWaits) // and the old process has let go of the last one in line
				c = dial(t, old.addr())
				c.echoed("hello")
				keepsFDs()
			})
		})
	}
}

// TestTakenUnasked: a word before the offer is an answer to it, as no offer has a number. It is a
// lie that hurts the client it is about, and nobody else.
func TestTakenUnasked(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		c, other := dial(t, old.addr()), dial(t, old.addr())
		other.echoed("hello")
		l := join(t, path)
		l.send(`{"type":"taken"}`)
		c.send("STEAL\n")
		_, fds := l.receive()
		for _, fd := range fds {
			unix.Close(fd) // the test's own
		}
		c.ended()
		l.hangUp()
		other.echoed("still here")
		other.stolen(old, s.young(t, path))
	})
}

// TestTimeout: the real clock, and a new process that certainly says nothing.
func TestTimeout(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path, args("-timeout", "50ms"))
		c := dial(t, old.addr())
		c.echoed("hello")
		keepsFDs := old.keepsFDs()
		l := join(t, path)
		told := ": i/o timeout"
		for strings.HasSuffix(told, ": i/o timeout") { // on a machine so slow that not even the offer is sent within the time
			c.send("STEAL\nafter\n")
			told = c.line()
			c.expect("after")
		}
		if !matches(`^\* not stolen: pid \d+ \(uid \d+\) did not answer within 50ms$`, told) {
			t.Errorf("got %q", told)
		}
		if m, fds := l.receive(); m.Type != "offer" {
			t.Errorf("got %+v, want an offer", m)
		} else {
			for _, fd := range fds {
				unix.Close(fd) // the test's own
			}
		}
		if m, _ := l.receive(); m.Type != "withdraw" || !strings.Contains(m.Reason, "did not answer within 50ms") {
			t.Errorf("got %+v, want a withdraw", m)
		}
		if err := unix.Sendmsg(l.fd, []byte(`{"type":"taken"}`), nil, nil, unix.MSG_NOSIGNAL); err != unix.EPIPE {
			t.Errorf("a late answer: %v, want EPIPE", err)
		}
		keepsFDs()
		c.echoed("still here")
	})
}

// served is a TCP connection whose server is this test.
type served struct {
	*client
	fd     int
	cookie uint64
	close  func()
}

func serve(t *testing.T) served {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := dial(t, l.Addr().String())
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close() // below is a duplicate
	x := served{client: c}
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { x.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	x.close = func() {
		if x.fd >= 0 {
			unix.Close(x.fd) // closed twice, it could be another's
		}
		x.fd = -1
	}
	t.Cleanup(func() { x.close() })
	if x.cookie, err = unix.GetsockoptUint64(x.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		t.Fatal(err)
	}
	return x
}

// socketOf opens a socket of the test's own.
func socketOf(t *testing.T, domain, kind int) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) }) // nothing to lose
	return fd
}

// TestLyingOldProcess: an offer that is not what it says is refused, with the reason; nothing leaks,
// and the truth is still welcome. The socket's options are the server's, and stay as they are.
func TestLyingOldProcess(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		x := serve(t)
		if s.encrypts {
			x.encrypt()
		}
		l, young := host(t, s, meetingPlace(t))
		// Where Yama's ptrace_scope is 1, a process must name who may fetch. EINVAL: there is no Yama.
		if err := unix.Prctl(unix.PR_SET_PTRACER, unix.PR_SET_PTRACER_ANY, 0, 0, 0); err != nil && err != unix.EINVAL {
			t.Fatal(err)
		}
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) }) // nothing to lose
		listener := socketOf(t, unix.AF_INET, unix.SOCK_STREAM)
		if err := unix.Listen(listener, 1); err != nil {
			t.Fatal(err)
		}

		// offer is what to send so that fd gets across, with that record.
		offer := func(fd int, cookie uint64) (record string, fds []int) {
			m := message{Type: "offer", FD: fd, Cookie: cookie}
			if s.pulls {
				return m.says(), nil
			}
			return m.says(), []int{fd}
		}
		truth, truthFDs := offer(x.fd, x.cookie)
		type lie struct {
			what, record string
			fds          []int
			reason       string
		}
		lies := []lie{
			{"garbage", "garbage", nil, "invalid character"},
			{"garbage with a descriptor", "garbage", []int{x.fd}, "."},
			{"no object", "[]", truthFDs, "."},
			{"a number for a type", `{"type":7}`, truthFDs, "."},
			{"an unknown word", `{"type":"gift"}`, truthFDs, `unexpected message "gift"`},
			{"taken", `{"type":"taken"}`, truthFDs, `unexpected message "taken"`},
			{"a record too long", truth + strings.Repeat(" ", 40<<10), truthFDs, "MSG_TRUNC"},
			{"two descriptors", truth, []int{x.fd, x.fd}, "2 descriptors"},
			{"253 descriptors", truth, make([]int, 253), "253 descriptors"},
		}
		for what, fd := range map[string]int{
			"a pipe":                pipe[0],
			"a listener":            listener,
			"a UDP socket":          socketOf(t, unix.AF_INET, unix.SOCK_DGRAM),
			"a unix socket":         socketOf(t, unix.AF_UNIX, unix.SOCK_STREAM),
			"an unconnected socket": socketOf(t, unix.AF_INET, unix.SOCK_STREAM),
		} {
			cookie, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE) // a pipe has none
			record, fds := offer(fd, cookie)
			lies = append(lies, lie{what, record, fds, "not a TCP socket|not connected"})
		}
		record, fds := offer(x.fd, x.cookie+1)
		lies = append(lies, lie{"another cookie", record, fds, fmt.Sprintf(`its cookie is %d, the offer says %d`, x.cookie, x.cookie+1)})
		if s.encrypts { // it would be served in plain text
			plain := serve(t)
			record, fds := offer(plain.fd, plain.cookie)
			lies = append(lies, lie{"no TLS", record, fds, `not a TCP socket with TLS in the kernel: getsockopt TLS_[TR]X: operation not supported`})
		}
		if s.pulls {
			closed, _ := offer(1<<20-1, x.cookie)
			negative, _ := offer(-1, x.cookie)
			lies = append(lies, lie{"a closed number", closed, nil, "it has no such descriptor"},
				lie{"a negative number", negative, nil, "it has no such descriptor"},
				lie{"a descriptor", truth, []int{x.fd}, "1 descriptors, not 0"})
		} else {
			lies = append(lies, lie{"no descriptor", truth, nil, "0 descriptors, not 1"})
		}
		keepsFDs := young.keepsFDs()
		for _, lie := range lies {
			l.send(lie.record, lie.fds...)
			answer, _ := l.receive()
			if answer.Type != "refused" || !matches(lie.reason, answer.Reason) {
				t.Errorf("%s: got %+v, want refused: %s", lie.what, answer, lie.reason)
			}
			keepsFDs()
		}

		setOptions(t, x.fd)
		before := options(t, x.fd)
		l.send(truth, truthFDs...)
		if answer, _ := l.receive(); answer.Type != "taken" {
			t.Fatalf("got %+v, want taken", answer)
		}
		x.expect(fmt.Sprintf("* stolen: pid %d -> pid %d", os.Getpid(), young.pid))
		x.echoed("hello")
		if after := options(t, x.fd); !maps.Equal(before, after) {
			t.Errorf("options before: %v\nafter: %v", before, after)
		}
		x.close()
		x.echoed("only the new process has it now")
		l.send(`{"type":"withdraw","reason":"enough"}`)
		young.logged(`gave up on this process: "enough"`)
		x.echoed("still here")
		x.finish("")
		young.exits(1)
	})
}

// TestDishonestEnds: what the old process may say last, or not at all.
func TestDishonestEnds(t *testing.T) {
	for name, end := range map[string]struct {
		say    func(*liar)
		status int
	}{
		"nothing":           {func(l *liar) { l.hangUp() }, 0},
		"withdraw":          {func(l *liar) { l.send(`{"type":"withdraw","reason":"no"}`) }, 1},
		"refused":           {func(l *liar) { l.send(`{"type":"refused","reason":"no"}`, 0, 1, 2) }, 1},
		"two empty records": {func(l *liar) { l.send(""); l.send("") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, steals, func(t *testing.T, s step) {
				l, young := host(t, s, meetingPlace(t))
				end.say(l)
				if name == "refused" { // with descriptors, it is a bad record, and refused
					if m, _ := l.receive(); m.Type != "refused" && !s.pulls {
						t.Errorf("got %+v, want refused", m)
					}
					l.hangUp()
					young.exits(0)
					return
				}
				young.exits(end.status)
			})
		})
	}
}

// options are what a server may have set on a connection, and the flags of its description.
var optionNames = map[string][3]int{ // level, name, a value that nobody else would choose
	"TCP_NODELAY":   {unix.IPPROTO_TCP, unix.TCP_NODELAY, 0},
	"TCP_KEEPIDLE":  {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77},
	"TCP_KEEPINTVL": {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 11},
	"TCP_KEEPCNT":   {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
	"SO_KEEPALIVE":  {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
	"SO_SNDBUF":     {unix.SOL_SOCKET, unix.SO_SNDBUF, 50_000},
	"SO_PRIORITY":   {unix.SOL_SOCKET, unix.SO_PRIORITY, 3},
	"IP_TOS":        {unix.IPPROTO_IP, unix.IP_TOS, 0x10},
}

func setOptions(t *testing.T, fd int) {
	t.Helper()
	for name, o := range optionNames {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3}); err != nil {
		t.Fatal(err)
	}
}

func options(t *testing.T, fd int) map[string]string {
	t.Helper()
	got := map[string]string{}
	for name, o := range optionNames {
		value, err := unix.GetsockoptInt(fd, o[0], o[1])
		got[name] = fmt.Sprint(value, err)
	}
	linger, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_LINGER) // two ints: on, seconds
	got["SO_LINGER"] = fmt.Sprintf("%#x %v", linger, err)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	got["flags"] = fmt.Sprintf("%#o %v", flags, err)
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("O_NONBLOCK is not set")
	}
	return got
}
