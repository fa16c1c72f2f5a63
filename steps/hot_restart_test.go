//go:build linux

package steps

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Step 07: everything moves. Two processes at a time, of which either may be killed, stopped or a liar.

var hotRestart = steps[slices.IndexFunc(steps, func(s step) bool { return s.moves })]

// first starts a server that nothing has gone before.
func first(t *testing.T, path string, with ...how) *process {
	t.Helper()
	return hotRestart.first(t, path, with...)
}

// next starts one more process at a path, and does not wait for it.
func next(t *testing.T, path, addr string, with ...how) *process {
	t.Helper()
	return hotRestart.next(t, path, addr, with...)
}

func (s step) first(t *testing.T, path string, with ...how) *process {
	t.Helper()
	return s.next(t, path, "127.0.0.1:0", with...).listens()
}

func (s step) next(t *testing.T, path, addr string, with ...how) *process {
	t.Helper()
	usual := []string{"-addr", addr, "-control", path, "-drain", "1h"}
	if s.web {
		usual = append(usual, "-patience", "1h")
	}
	return s.start(t, append([]how{args(usual...)}, with...)...)
}

func (p *process) listens() *process {
	p.t.Helper()
	p.logged(`listening on `)
	return p
}

// hotKills: what a kill -9 does, at every message. Each row is two real processes and two clients, with
// a connection to a batch: so offer 1 is the listeners, 2 and 3 are the connections, and 4 is done. The
// victim dies at that message. What the new process does is the situation:
//
//	takes      it answers
//	hesitates  it is stopped before it says taken for the Nth time; when it wakes, the offer is withdrawn
//	refuses    it has no descriptor free for the second connection
//
// The last three say who has the listeners then, the first connection that moved, and the second. Nobody
// is who was killed. Anew: it is the first again, and has opened a listener of its own.
var hotKills = []struct{ situation, victim, at, listeners, first, second string }{
	{"takes", "old", "after-receive hello 1", "anew", "nobody", "nobody"},
	{"takes", "old", "before-send offer 1", "anew", "nobody", "nobody"},
	{"takes", "old", "after-send offer 1", "new", "nobody", "nobody"},
	{"takes", "old", "after-receive taken 1", "new", "nobody", "nobody"},
	{"takes", "old", "before-send offer 2", "new", "nobody", "nobody"},
	{"takes", "old", "after-send offer 2", "new", "new", "nobody"},
	{"takes", "old", "after-receive taken 2", "new", "new", "nobody"},
	{"takes", "old", "before-send offer 3", "new", "new", "nobody"},
	{"takes", "old", "after-send offer 3", "new", "new", "new"},
	{"takes", "old", "after-receive taken 3", "new", "new", "new"},
	{"takes", "old", "before-send offer 4", "new", "new", "new"},
	{"takes", "old", "after-send offer 4", "new", "new", "new"},
	{"takes", "old", "after-receive taken 4", "new", "new", "new"},
	{"takes", "new", "before-send hello 1", "old", "old", "old"},
	{"takes", "new", "after-send hello 1", "old", "old", "old"},
	{"takes", "new", "after-receive offer 1", "old", "old", "old"},
	{"takes", "new", "before-send taken 1", "old", "old", "old"},
	{"takes", "new", "after-send taken 1", "old", "old", "old"},
	{"takes", "new", "after-receive offer 2", "old", "old", "old"},
	{"takes", "new", "before-send taken 2", "old", "old", "old"},
	{"takes", "new", "after-send taken 2", "old", "nobody", "old"},
	{"takes", "new", "after-receive offer 3", "old", "nobody", "old"},
	{"takes", "new", "before-send taken 3", "old", "nobody", "old"},
	{"takes", "new", "after-send taken 3", "old", "nobody", "nobody"},
	{"takes", "new", "after-receive offer 4", "old", "nobody", "nobody"},
	{"takes", "new", "before-send taken 4", "old", "nobody", "nobody"},
	{"takes", "new", "after-send taken 4", "nobody", "nobody", "nobody"},
	{"hesitates 1", "old", "before-send withdraw 1", "new", "nobody", "nobody"},
	{"hesitates 1", "old", "after-send withdraw 1", "nobody", "nobody", "nobody"},
	{"hesitates 2", "old", "before-send withdraw 1", "new", "new", "nobody"},
	{"hesitates 2", "old", "after-send withdraw 1", "nobody", "nobody", "nobody"},
	{"hesitates 3", "old", "before-send withdraw 1", "new", "new", "new"},
	{"hesitates 3", "old", "after-send withdraw 1", "nobody", "new", "nobody"},
	{"hesitates 4", "old", "before-send withdraw 1", "new", "new", "new"},
	{"hesitates 4", "old", "after-send withdraw 1", "nobody", "new", "new"},
	{"hesitates 1", "new", "after-receive withdraw 1", "old", "old", "old"},
	{"hesitates 2", "new", "after-receive withdraw 1", "old", "old", "old"},
	{"hesitates 3", "new", "after-receive withdraw 1", "old", "nobody", "old"},
	{"hesitates 4", "new", "after-receive withdraw 1", "old", "nobody", "nobody"},
	{"hesitates 3", "neither", "", "old", "new", "old"},
	{"hesitates 4", "neither", "", "old", "new", "new"},
	{"refuses", "old", "after-receive refused 1", "new", "new", "nobody"},
	{"refuses", "old", "before-send withdraw 1", "new", "new", "nobody"},
	{"refuses", "old", "after-send withdraw 1", "nobody", "new", "nobody"},
	{"refuses", "new", "before-send refused 1", "old", "nobody", "old"},
	{"refuses", "new", "after-send refused 1", "old", "nobody", "old"},
	{"refuses", "new", "after-receive withdraw 1", "old", "nobody", "old"},
	{"refuses", "neither", "", "old", "new", "old"},
}

func TestHotKills(t *testing.T) { hotRestart.dies(t) }

// dies runs the rows for a step; each fifth of them, if they are many.
func (s step) dies(t *testing.T) {
	for i, k := range hotKills {
		if testing.Short() && i%5 != 0 || s.web && !isLong && i%5 != 2 {
			continue
		}
		t.Run(fmt.Sprintf("%s/%s dies %s", k.situation, k.victim, k.at), func(t *testing.T) {
			t.Parallel()
			var oldHooks, newHooks []string
			nth, hesitates := strings.CutPrefix(k.situation, "hesitates ")
			switch {
			case hesitates:
				oldHooks = []string{"after-send offer " + nth + " stop", "after-send offer " + nth + " expire"}
				newHooks = []string{"before-send taken " + nth + " stop"}
			case k.situation == "refuses":
				newHooks = []string{"after-send taken 2 stop"}
			}
			switch k.victim {
			case "old":
				oldHooks = append(oldHooks, k.at+" kill")
			case "new":
				newHooks = append(newHooks, k.at+" kill")
			}
			path := meetingPlace(t)
			old := s.first(t, path, args("-batch", "1"), hook(oldHooks...))
			addr := old.addr()
			clients := []*client{dial(t, addr), dial(t, addr)}
			for _, c := range clients {
				s.greet(c, "hello")
				c.send(s.half()) // which the old process has in hand
			}
			young := s.next(t, path, addr, hook(newHooks...))
			switch {
			case hesitates:
				young.stopped()
				old.stopped()
				old.signal(unix.SIGCONT)
				if k.victim == "old" {
					old.died()
				} else {
					old.logged(`not taken over: pid \d+ \(uid \d+\) did not answer within 1h`)
				}
				young.signal(unix.SIGCONT)
			case k.situation == "refuses":
				young.stopped()
				restore := young.limitFDs(0)
				young.signal(unix.SIGCONT)
				if k.victim != "new" {
					young.logged(`refused an offer: .*ulimit -n`)
					restore()
				}
			}
			switch k.victim {
			case "old":
				old.died()
			case "new":
				young.died()
			}
			served := map[string][]*client{}
			want := map[string]int{k.first: 1}
			want[k.second]++
			for _, c := range clients {
				by := whoServes(t, s, c, old, young)
				served[by] = append(served[by], c)
			}
			for by, n := range want {
				if len(served[by]) != n {
					t.Errorf("%d connections with %s, want %d", len(served[by]), by, n)
				}
			}
			switch k.listeners {
			case "old":
				s.greet(dial(t, addr), "a new one")
			case "new", "anew":
				young.listens()
				s.greet(dial(t, addr), "a new one")
			case "nobody":
				eventually(t, "nobody listens at "+addr, func() bool {
					c, err := net.Dial("tcp", addr)
					if err == nil {
						c.Close()
					}
					return errors.Is(err, unix.ECONNREFUSED)
				})
			}
			// Nothing needs cleaning up: the same command once more takes over, or begins anew.
			s.next(t, path, addr).listens()
			s.greet(dial(t, addr), "and on")
			for by, list := range served {
				for _, c := range list {
					if by != "nobody" {
						s.greet(c, "still here")
					}
				}
			}
			if k.victim == "neither" { // its clients leave, and the reason that it gave up is an error
				for _, c := range served["new"] {
					c.finish("")
				}
				young.exits(1)
			}
		})
	}
}

// whoServes finishes a client's line, and says who has answered: every byte once, or the end.
func whoServes(t *testing.T, s step, c *client, old, young *process) string {
	t.Helper()
	_, sent := io.WriteString(c, "line\n") // to a connection that has ended it may fail
	line, err := s.read(c)
	switch {
	case line == "half a line\n" && sent == nil:
	case line == "" && err != nil:
		return "nobody"
	default:
		t.Fatalf("got %q and %v, %v", line, sent, err)
	}
	inode := c.inode()
	by := ""
	eventually(t, "one process has the connection", func() bool {
		by = ""
		for name, p := range map[string]*process{"old": old, "new": young} {
			select {
			case <-p.done:
			default:
				if p.has(inode) {
					by += name
				}
			}
		}
		return by == "old" || by == "new"
	})
	return by
}

// TestHotRestarts: one restart after the other, under load: lines of any length, slow readers,
// connections that come and go. Every byte comes back once and in order, over the same connection.
func TestHotRestarts(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := first(t, path)
	addr := server.addr()
	var all sync.WaitGroup
	var over atomic.Bool
	var rounded atomic.Int64
	for id := range rounds(40, 200) {
		all.Go(func() {
			random := rand.New(rand.NewSource(int64(id)))
			for !over.Load() && !t.Failed() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				err = converse(c.(*net.TCPConn), random, id%4 == 0)
				c.Close()
				if err != nil {
					t.Errorf("client %d: %v", id, err)
				}
				rounded.Add(1)
			}
		})
	}
	still := dial(t, addr)
	still.echoed("hello")
	inode := still.inode()
	for range rounds(10, 50) {
		for enough := rounded.Load() + 20; rounded.Load() < enough && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		after := next(t, path, addr).listens()
		server.exits(0)
		server = after
	}
	over.Store(true)
	all.Wait()
	still.echoed("still here")
	if still.inode() != inode || !server.has(inode) {
		t.Error("the connection is not the one that it was")
	}
	server.signal(unix.SIGUSR1)
	server.logged(fmt.Sprintf(`generation %d: clients \d+ of`, rounds(10, 50)+1))
}

// converse sends lines of 1 byte to 64 KiB, half-closes, and compares what comes back.
func converse(c *net.TCPConn, random *rand.Rand, slow bool) error {
	if err := c.SetDeadline(deadline()); err != nil {
		return err
	}
	var sent []byte
	for range 1 + random.Intn(20) {
		sent = append(sent, bytes.Repeat([]byte{byte('a' + random.Intn(26))}, 1<<random.Intn(17))...)
		sent = append(sent, '\n')
	}
	go func() {
		_, _ = c.Write(sent) // what fails is missing below
		c.CloseWrite()
	}()
	var got []byte
	for buffer := make([]byte, 8<<10); ; {
		n, err := c.Read(buffer)
		got = append(got, buffer[:n]...)
		if slow {
			time.Sleep(time.Millisecond)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("sent %d bytes, got %d, or others", len(sent), len(got))
	}
	return nil
}

// TestHotLeaks: restarts leave no descriptor behind, in whichever direction one looks.
func TestHotLeaks(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := first(t, path)
	addr := server.addr()
	clients := []*client{dial(t, addr), dial(t, addr), dial(t, addr)}
	open := 0
	for i := range rounds(8, 50) {
		for _, c := range clients {
			c.echoed("hello")
		}
		after := next(t, path, addr).listens()
		server.exits(0)
		server = after
		if i == 1 {
			open = len(server.fds())
		}
	}
	for _, c := range clients {
		c.echoed("hello")
	}
	eventually(t, fmt.Sprintf("no more descriptors than %d", open), func() bool { return len(server.fds()) <= open })
}

// TestHotRollback: takeovers that come to nothing leave nothing behind, and nobody notices.
func TestHotRollback(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	old := first(t, path, args("-batch", "2"))
	addr := old.addr()
	clients := []*client{dial(t, addr), dial(t, addr), dial(t, addr)}
	for _, c := range clients {
		c.echoed("hello")
	}
	keepsFDs := old.keepsFDs()
	for range rounds(5, 50) {
		for _, at := range []string{"after-send taken 1", "after-receive offer 2", "before-send taken 2"} {
			next(t, path, addr, hook(at+" kill")).died()
		}
		for _, c := range clients {
			c.echoed("still here")
		}
	}
	keepsFDs()
	next(t, path, addr).listens()
	old.exits(0)
	for _, c := range clients {
		c.echoed("still here")
	}
}

// TestStay: a connection that cannot move is served by the old process to its end, or until -drain.
func TestStay(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	old := first(t, path)
	addr := old.addr()
	stays, moves := dial(t, addr), dial(t, addr)
	stays.send(" stay\r\nSTAYING\n")
	stays.expect(fmt.Sprintf("* stays with pid %d", old.pid), "STAYING")
	moves.echoed("hello")
	young := next(t, path, addr, args("-drain", "50ms")).listens()
	old.logged(`draining for up to 1h0m0s: clients 1`)
	stays.echoed("still here")
	moves.echoed("still here")
	if inode := stays.inode(); !old.has(inode) || young.has(inode) {
		t.Error("the connection that stays has moved")
	}
	stays.finish("")
	old.exits(0)
	moves.send("STAY\n")
	moves.expect(fmt.Sprintf("* stays with pid %d", young.pid))
	next(t, path, addr).listens()
	young.logged(`cut: clients 1 have not left within 50ms`)
	young.exits(0)
	moves.ended()
}

// TestRoom: a new process that may not open enough descriptors refuses before anything moves.
func TestRoom(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	old := first(t, path)
	addr := old.addr()
	var clients []*client
	for range 20 {
		clients = append(clients, dial(t, addr))
		clients[len(clients)-1].echoed("hello")
	}
	script := `ulimit -n 80; exec "$0" "$@"`
	poor := start(t, "/bin/sh", args("-c", script, old.cmd.Path, "-addr", addr, "-control", path))
	poor.fails(`no room for 20 connections, but for 16: raise RLIMIT_NOFILE`)
	old.logged(`not taken over: .*no room for 20 connections.*connections moved: 0, still here: 20`)
	for _, c := range clients {
		c.echoed("still here")
	}
	next(t, path, addr).listens()
	old.exits(0)
}

// TestManyIdle: thousands of clients that say nothing, and all of them are there afterwards.
func TestManyIdle(t *testing.T) {
	t.Parallel()
	crowd(t)
	path := meetingPlace(t)
	server := first(t, path)
	addr := server.addr()
	var clients []*client
	for range rounds(500, 9000) {
		c := dial(t, addr)
		c.in = bufio.NewReaderSize(c, 64)
		clients = append(clients, c)
		c.echoed("hello")
	}
	for range 3 {
		after := next(t, path, addr).listens()
		after.logged(fmt.Sprintf(`connections moved: %d,`, len(clients)))
		server.exits(0)
		server = after
	}
	for _, c := range clients {
		c.echoed("still here")
		c.finish("")
	}
}

// TestMemory: what clients have sent and is not answered yet is in both processes at most in part: together
// they stay below two and a half times what one needs alone.
func TestMemory(t *testing.T) {
	long(t)
	path := meetingPlace(t)
	old := first(t, path)
	addr := old.addr()
	piece := strings.Repeat("x", 16<<10-1) // one byte more, and it is echoed
	var clients []*client
	for range 5000 {
		c := dial(t, addr)
		c.in = bufio.NewReaderSize(c, 64)
		clients = append(clients, c)
		c.echoed("hello")
		c.send(piece)
	}
	eventually(t, "all is read", func() bool { return old.peak("VmRSS") > 5000*16 }) // kB
	alone := old.peak("VmHWM")
	after := next(t, path, addr, hook("before-send serving 1 stop")) // the old one lives as long
	after.logged(fmt.Sprintf(`connections moved: %d,`, len(clients)))
	after.stopped()
	if both := old.peak("VmHWM") + after.peak("VmHWM"); both > alone*5/2 {
		t.Errorf("alone it had %d kB, and both together have %d", alone, both)
	}
	after.signal(unix.SIGCONT)
	for _, c := range clients {
		c.send("\n")
		c.expect(piece)
	}
}

// peak is a line of /proc/PID/status, in kB.
func (p *process) peak(name string) (kB int) {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			fmt.Sscan(value, &kB)
		}
	}
	return kB
}

// TestHotLiars: whatever another process says, or does not say, at the first or the second offer: the
// old one goes on serving, keeps nothing open, and the next one that tells the truth gets everything.
func TestHotLiars(t *testing.T) {
	hello := `{"type":"hello","min":1,"max":9}`
	taken := func(l *liar) { l.send(`{"type":"taken"}`) }
	for name, lie := range map[string]func(l *liar){
		"garbage":           func(l *liar) { l.send("\x1b[2J garbage") },
		"a record too long": func(l *liar) { l.send(strings.Repeat(" ", 40<<10)) },
		"253 descriptors":   func(l *liar) { l.send(`{"type":"taken"}`, make([]int, 253)...) },
		"an unknown word":   func(l *liar) { l.send(`{"type":"borrowed"}`) },
		"an offer":          func(l *liar) { l.send(`{"type":"offer","what":"done"}`) },
		"hello again":       func(l *liar) { l.send(hello) },
		"refused":           func(l *liar) { l.send(`{"type":"refused","reason":"no"}`) },
		"refused and taken": func(l *liar) { l.send(`{"type":"refused","reason":"no"}`); l.mutter(`{"type":"taken"}`) },
		"two empty records": func(l *liar) { l.send(""); l.send("") },
		"the end":           func(l *liar) { l.hangUp() },
		"half the end":      func(l *liar) { unix.Shutdown(l.fd, unix.SHUT_WR) },
	} {
		for _, at := range []int{0, 1, 2} { // instead of hello, or of the answer to that offer
			if at == 0 && name == "hello again" || testing.Short() && at != len(name)%3 {
				continue // the first is no lie
			}
			t.Run(fmt.Sprintf("%s at %d", name, at), func(t *testing.T) {
				t.Parallel()
				path := meetingPlace(t)
				old := first(t, path)
				addr := old.addr()
				c := dial(t, addr)
				c.echoed("hello")
				keepsFDs := old.keepsFDs()
				l := join(t, path)
				for offers := range at {
					if offers == 0 {
						l.send(hello)
					} else {
						taken(l)
					}
					m, fds := l.receive()
					for _, fd := range fds {
						unix.Close(fd) // the test's own
					}
					if m.Type != "offer" {
						t.Fatalf("got %+v", m)
					}
				}
				lie(l)
				old.logged(`not taken over: `)
				c.echoed("still here")
				l.hangUp()
				keepsFDs()
				dial(t, addr).echoed("and others come")
				next(t, path, addr).listens()
				c.echoed("still here")
				old.exits(0)
			})
		}
	}
}

// mutter sends a record to a process that need not listen any more.
func (l *liar) mutter(record string) {
	_ = unix.Sendmsg(l.fd, []byte(record), nil, nil, unix.MSG_NOSIGNAL)
}

// TestHotSilence: a process that says nothing more, instead of hello or of an answer. When its time is
// over, it delays nobody, and nothing is left of it.
func TestHotSilence(t *testing.T) {
	for at := range 4 {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			path := meetingPlace(t)
			silence := args("-timeout", "10ms") // the hello never comes
			if at > 0 {
				silence = hook(fmt.Sprintf("after-send offer %d expire", at))
			}
			old := first(t, path, silence)
			addr := old.addr()
			c := dial(t, addr)
			c.echoed("hello")
			keepsFDs := old.keepsFDs()
			l := join(t, path)
			for offers := range at {
				if offers == 0 {
					l.send(`{"type":"hello","min":1,"max":9}`)
				} else {
					l.send(`{"type":"taken"}`)
				}
				m, fds := l.receive()
				for _, fd := range fds {
					unix.Close(fd) // the test's own
				}
				if m.Type != "offer" {
					t.Fatalf("got %+v", m)
				}
			}
			old.logged(`not taken over: `)
			if at == 3 { // its only batch was taken, and with this test's descriptor closed, it has ended
				c.ended()
			} else {
				c.echoed("still here")
			}
			l.hangUp()
			keepsFDs()
			dial(t, addr).echoed("and others come")
		})
	}
}

// TestHotLyingOld: a new process believes no offer that is not what it says, refuses it in words, keeps
// nothing of it, and takes the next one. In the end it is told that it gets no more: it has one
// connection, and serves that to its end.
func TestHotLyingOld(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	control := newLiar(t)
	if err := unix.Bind(control.fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(control.fd, 1); err != nil {
		t.Fatal(err)
	}
	young := next(t, path, "127.0.0.1:0")
	fd := -1
	if err := uninterrupted(func() (err error) {
		fd, _, err = unix.Accept4(control.fd, unix.SOCK_CLOEXEC)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l := newLiarOn(t, fd)
	if m, _ := l.receive(); m.Type != "hello" {
		t.Fatalf("got %+v", m)
	}
	lock, err := unix.Open(path+".lock", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(lock) })
	l.send(`{"type":"offer","what":"listeners","version":2,"clients":1}`, control.fd, lock)
	if m, _ := l.receive(); m.Type != "taken" {
		t.Fatalf("got %+v", m)
	}
	x := serve(t)
	memfd := func(text string, seals int) int {
		fd, err := unix.MemfdCreate("liar", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err == nil {
			_, err = unix.Write(fd, []byte(text))
		}
		if err == nil && seals != 0 {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	const batch = `{"type":"offer","what":"connections"}`
	truth := fmt.Sprintf(`[{"c":%d,"in":5,"out":3}]`+"\nhalf in ", x.cookie)
	keepsFDs := young.keepsFDs()
	for _, lie := range []struct {
		what, record string
		fds          []int
		reason       string
	}{
		{"garbage", "garbage", []int{x.fd}, "invalid character"},
		{"an unknown word", `{"type":"gift"}`, []int{x.fd}, `unexpected gift`},
		{"an unknown offer", `{"type":"offer","what":"all"}`, []int{x.fd}, `unexpected offer "all"`},
		{"the listeners again", `{"type":"offer","what":"listeners"}`, []int{control.fd, lock}, `unexpected offer "listeners"`},
		{"done, and a descriptor", `{"type":"offer","what":"done"}`, []int{x.fd}, `unexpected offer "done"`},
		{"no memfd", batch, nil, "without a memfd"},
		{"a socket for a memfd", batch, []int{x.fd, x.fd}, "F_GET_SEALS"},
		{"not sealed", batch, []int{memfd(truth, 0), x.fd}, "could still change it"},
		{"sealed in part", batch, []int{memfd(truth, unix.F_SEAL_WRITE), x.fd}, "could still change it"},
		{"no socket", batch, []int{memfd(truth, all)}, "speaks of 1 sockets, and 0 came"},
		{"too many", batch, []int{memfd(truth, all), x.fd, x.fd}, "speaks of 1 sockets, and 2 came"},
		{"253", batch, append([]int{memfd(truth, all)}, slices.Repeat([]int{x.fd}, 252)...), "speaks of 1 sockets, and 252 came"},
		{"another cookie", batch, []int{memfd(`[{"c":1}]`, all), x.fd}, "another socket"},
		{"a unix socket", batch, []int{memfd(truth, all), l.fd}, "not a TCP socket"},
		{"bytes that are not there", batch, []int{memfd(fmt.Sprintf(`[{"c":%d,"in":99}]`, x.cookie), all), x.fd}, "ends within"},
	} {
		l.send(lie.record, lie.fds...)
		if m, _ := l.receive(); m.Type != "refused" || !strings.Contains(m.Reason, lie.reason) {
			t.Errorf("%s: got %+v, want refused: %s", lie.what, m, lie.reason)
		}
		keepsFDs()
	}
	setOptions(t, x.fd)
	before := options(t, x.fd)
	l.send(batch, memfd(truth, all), x.fd)
	if m, _ := l.receive(); m.Type != "taken" {
		t.Fatalf("got %+v, want taken", m)
	}
	x.send("a line\n")
	x.expect("in half a line") // what the old one had not written, and what it had read
	if after := options(t, x.fd); !maps.Equal(before, after) {
		t.Errorf("options before: %v\nafter: %v", before, after)
	}
	x.close()
	l.send(`{"type":"withdraw","reason":"enough"}`)
	young.logged(`gave up on this process: "enough"; serving connections to their end: 1`)
	eventually(t, "it has let go of the control socket", func() bool {
		return !strings.Contains(strings.Join(slices.Collect(maps.Values(young.fds())), " "), path+".lock")
	})
	x.echoed("still here")
	x.finish("")
	young.exits(1)
}
