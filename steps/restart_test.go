//go:build linux

package steps

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Servers that are started again and take over. A second s.old at the same control path is the next
// generation: it has taken over when it says that it listens.

// counted asks a server for its line of state, and returns generation, clients, connections and lines.
func (p *process) counted() (all [4]int) {
	p.t.Helper()
	state := regexp.MustCompile(`generation (\d+): clients (\d+) of \d+; since generation 1: connections (\d+), lines (\d+)`)
	before := len(state.FindAllString(p.err.String(), -1))
	p.signal(unix.SIGUSR1)
	eventually(p.t, "it says its state", func() bool { return len(state.FindAllString(p.err.String(), -1)) > before })
	last := state.FindAllStringSubmatch(p.err.String(), -1)
	for i := range all {
		fmt.Sscan(last[len(last)-1][i+1], &all[i])
	}
	return all
}

// listening are the inodes of the sockets that listen on addr.
func listening(t *testing.T, addr string) (inodes []string) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ip := net.ParseIP(host).To4()
	var number int
	fmt.Sscan(port, &number)
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for row := range strings.Lines(string(table)) {
		f := strings.Fields(row) // as in inodes; 0A is listening
		if f[1] == fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], number) && f[3] == "0A" {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}

// TestRestart: the new process has the very listener, and whoever waits there. The old one accepts no
// more, and serves its clients to their end. What has been counted travels.
func TestRestart(t *testing.T) {
	each(t, drains, func(t *testing.T, s step) {
		path := meetingPlace(t)
		first := s.old(t, path)
		addr := first.addr()
		inode := listening(t, addr)[0]
		a := dial(t, addr)
		a.echoed("hello")
		// It has taken over, and accepts nobody yet. Who connects now waits in the queue.
		second := s.start(t, args("-control", path), hook("after-send taken 1 stop"))
		second.stopped()
		first.logged(`taken over by pid ` + fmt.Sprint(second.pid))
		eventually(t, "the first has closed the listener", func() bool { return !first.has(inode) })
		b := dial(t, addr)
		b.send("is anybody there?\n")
		second.signal(unix.SIGCONT)
		b.expect("is anybody there?")
		if got := second.addr(); got != addr || !second.has(inode) {
			t.Errorf("it listens on %s, not on %s", got, addr)
		}
		a.echoed("with the first")
		b.echoed("with the second")
		first.logged(`draining for up to 30s: clients 1`)
		eventually(t, "three lines are counted, without the first one's last", func() bool {
			return second.counted() == [4]int{2, 1, 2, 3} // a client hears its line before it counts
		})
		a.finish("")
		first.logged(`drained in `)
		first.exits(0)
		eventually(t, "the second knows what the first has counted", func() bool { return second.counted()[3] == 4 })
		third := s.old(t, path)
		b.finish("")
		second.exits(0)
		visits(t, addr)
		third.signal(unix.SIGTERM)
		third.exits(0)
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("it has left its path: %v", err)
		}
	})
}

// TestDrainEnds: a client that stays is cut when the time is over.
func TestDrainEnds(t *testing.T) {
	each(t, drains, func(t *testing.T, s step) {
		path := meetingPlace(t)
		first := s.old(t, path, args("-drain", "1ms"))
		c := dial(t, first.addr())
		c.echoed("hello")
		s.old(t, path)
		first.logged(`cut: clients 1 have not left within 1ms`)
		first.exits(0)
		c.ended()
	})
}

// TestSecondSIGTERM: one while it drains does not cut anybody; a second one ends it.
func TestSecondSIGTERM(t *testing.T) {
	each(t, drains, func(t *testing.T, s step) {
		path := meetingPlace(t)
		first := s.old(t, path)
		c := dial(t, first.addr())
		c.echoed("hello")
		second := s.old(t, path)
		first.logged(`draining for up to`)
		first.signal(unix.SIGTERM)
		first.logged(`draining, and ending then; another signal ends it now`)
		c.echoed("still here")
		first.counted()
		first.signal(unix.SIGUSR2)
		first.logged(`not started again: another process has taken over`)
		first.signal(unix.SIGTERM)
		if got := first.wait(); !got.Signaled() || got.Signal() != unix.SIGTERM {
			t.Errorf("%v, want it ended by SIGTERM", first.cmd.ProcessState)
		}
		c.ended()
		second.signal(unix.SIGTERM)
		second.exits(0)
	})
}

// TestAddresses: sockets are compared, and not text. What is asked for and there is taken over, what is
// not there is opened, and what nobody asks for any more is closed. Each row is what the generations ask
// for, one after the other. A and B are the first one's listeners, and P is A's port, which the kernel
// has chosen. Those that it keeps are the very sockets, to the end.
func TestAddresses(t *testing.T) {
	for _, row := range []struct{ ask, keeps, not []string }{
		{[]string{"127.0.0.1:0", "", "A", "127.0.0.1:0", "localhost:P", "A,A", " A , A"}, []string{"A"}, nil},
		{[]string{"127.0.0.1:0", "127.0.0.2:0"}, nil, []string{"A"}},
		{[]string{"127.0.0.1:0", "127.0.0.2:0,A", ""}, []string{"A"}, nil},
		{[]string{"127.0.0.1:0,127.0.0.2:0", "B"}, []string{"B"}, []string{"A"}},
		{[]string{"0.0.0.0:0", ":P", ":P", "0.0.0.0:P"}, []string{"A"}, []string{"[::1]:P"}},
	} {
		t.Run(strings.Join(row.ask, " then "), func(t *testing.T) {
			each(t, restarts, func(t *testing.T, s step) {
				path := meetingPlace(t)
				p := s.old(t, path, args("-addr", row.ask[0]))
				count := strings.Count(row.ask[0], ",") + 1
				eventually(t, "it serves all", func() bool { return strings.Count(p.err.String(), "listening on ") == count })
				said := regexp.MustCompile(`listening on (\S+)`).FindAllStringSubmatch(p.err.String(), -1)
				names := []string{"A", said[0][1], "B", said[len(said)-1][1], "P", said[0][1][strings.LastIndex(said[0][1], ":")+1:]}
				with := strings.NewReplacer(names...).Replace
				before := map[string]string{}
				for _, addr := range row.keeps {
					before[addr] = fmt.Sprint(listening(t, with(addr)))
				}
				for _, ask := range row.ask[1:] {
					next := s.old(t, path, args("-addr", with(ask)))
					p.exits(0)
					p = next
					for _, addr := range row.keeps {
						if now := fmt.Sprint(listening(t, with(addr))); now != before[addr] {
							t.Errorf("%q: %s was listened on by %v, and is by %v", ask, addr, before[addr], now)
						}
						visits(t, strings.Replace(with(addr), "0.0.0.0", "127.0.0.1", 1))
					}
					visits(t, strings.Replace(p.addr(), "0.0.0.0", "127.0.0.1", 1))
				}
				for _, addr := range row.not {
					eventually(t, "nobody serves "+addr, func() bool {
						c, err := net.Dial("tcp", with(addr))
						if err == nil {
							_ = c.Close() // whatever it says
						}
						return err != nil
					})
				}
			})
		})
	}
}

// TestAddressLeft: an address that nobody asks for any more is closed only when those who wait there
// have been served.
func TestAddressLeft(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		first := s.old(t, path)
		addr := first.addr()
		last := "after-send taken 1 stop"
		if s.moves { // first copies, then all
			last = "after-send taken 2 stop"
		}
		second := s.start(t, args("-control", path, "-addr", "127.0.0.2:0"), hook(last))
		second.stopped()
		inode := listening(t, addr)[0]
		eventually(t, "the first has closed the listener", func() bool { return !first.has(inode) })
		var waiting []*client
		for range rounds(20, 100) {
			waiting = append(waiting, dial(t, addr))
		}
		second.signal(unix.SIGCONT)
		second.logged(`no longer listening on ` + addr)
		for _, c := range waiting {
			c.echoed("hello")
		}
		eventually(t, "it is closed", func() bool { return len(listening(t, addr)) == 0 })
	})
}

// TestAddressTaken: what the next process cannot open is no reason to stop the one that serves.
func TestAddressTaken(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		other, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		path := meetingPlace(t)
		first := s.old(t, path)
		s.start(t, args("-control", path, "-addr", other.Addr().String())).
			fails(`bind: address already in use: choose another with -addr`)
		first.logged(`not taken over: pid \d+ \(uid \d+\) refused: .*address already in use`)
		visits(t, first.addr())
		s.old(t, path)
		first.exits(0)
	})
}

// TestPrivilegedPort: the next process may no longer bind the port, and need not.
func TestPrivilegedPort(t *testing.T) {
	needsRoot(t)
	each(t, restarts, func(t *testing.T, s step) {
		unprivileged, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		if err != nil || strings.TrimSpace(string(unprivileged)) != "1024" {
			t.Skipf("here anybody may bind ports from %s (%v)", unprivileged, err)
		}
		dir := folder(t)
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "control")
		may := func(cmd *exec.Cmd) { cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_BIND_SERVICE} }
		var first *process
		addr := ""
		for port := 600; first == nil; port++ { // the kernel chooses none of these
			addr = fmt.Sprintf("127.0.0.1:%d", port)
			p := s.start(t, as(nobody), may, args("-addr", addr, "-control", path))
			eventually(t, "it serves, or says why not", func() bool { return strings.Contains(p.err.String(), "\n") })
			if !strings.Contains(p.err.String(), "address already in use") || port == 1023 {
				p.logged(`listening on `)
				first = p
			}
		}
		s.start(t, as(nobody), args("-control", path+"2", "-addr", addr)).fails(`bind: permission denied`)
		s.old(t, path, as(nobody), args("-addr", addr))
		first.exits(0)
		visits(t, addr)
	})
}

// TestRestartKills: what a kill -9 does at every message of a takeover. The next process takes it, or
// hesitates: it is stopped before it answers, and the time is over for the old one. Then has the
// listener: the old process, the new one; the new one anew, as the first again; or nobody, as it has
// died, and the next one begins anew. A client of the old process is served by that as long as it lives.
var restartKills = []struct{ situation, victim, at, has string }{
	{"takes", "old", "after-receive hello", "anew"},
	{"takes", "old", "before-send offer", "anew"},
	{"takes", "old", "after-send offer", "new"},
	{"takes", "old", "after-receive taken", "new"},
	{"takes", "new", "before-send hello", "old"},
	{"takes", "new", "after-send hello", "old"},
	{"takes", "new", "after-receive offer", "old"},
	{"takes", "new", "before-send taken", "old"},
	{"takes", "new", "after-send taken", "nobody"},
	{"hesitates", "old", "before-send withdraw", "new"},
	{"hesitates", "old", "after-send withdraw", "anew"},
	{"hesitates", "new", "after-receive withdraw", "old"},
}

func TestRestartKills(t *testing.T) {
	for _, k := range restartKills {
		t.Run(fmt.Sprintf("%s/%s dies %s", k.situation, k.victim, k.at), func(t *testing.T) {
			each(t, drains, func(t *testing.T, s step) {
				path := meetingPlace(t)
				hooks := map[string][]string{k.victim: {k.at + " 1 kill"}}
				if k.situation == "hesitates" {
					hooks["old"] = append(hooks["old"], "after-send offer 1 expire")
					hooks["new"] = append(hooks["new"], "before-send taken 1 stop")
				}
				old := s.old(t, path, hook(hooks["old"]...))
				addr := old.addr()
				inode := listening(t, addr)[0]
				c := dial(t, addr)
				c.echoed("hello")
				young := s.start(t, args("-control", path, "-addr", addr), hook(hooks["new"]...))
				victim, lives := old, k.victim == "new"
				if lives {
					victim = young
				}
				if k.situation == "hesitates" {
					young.stopped()
					if lives {
						old.logged(`not taken over: pid \d+ \(uid \d+\) did not answer`)
					} else {
						victim.died()
					}
					young.signal(unix.SIGCONT)
				}
				victim.died()
				switch k.has {
				case "old":
					if !old.has(inode) {
						t.Error("the old process has no listener any more")
					}
				case "new":
					young.logged(`listening on `)
					if !young.has(inode) {
						t.Error("the new process has another listener")
					}
				case "anew":
					if k.situation == "hesitates" { // it was given up on, and says so
						young.fails(`gave up on this process`)
						young = s.old(t, path, args("-addr", addr))
					}
					young.logged(`listening on `)
				case "nobody":
					if len(listening(t, addr)) > 0 {
						eventually(t, "nobody listens", func() bool { return len(listening(t, addr)) == 0 })
					}
				}
				if lives {
					c.echoed("still here")
				} else {
					c.ended()
				}
				if k.has != "nobody" {
					visits(t, addr)
				}
				dialled := s.old(t, path, args("-addr", addr)) // and whoever is next, takes over or begins
				visits(t, dialled.addr())
			})
		})
	}
}

// TestHesitantIsLeft: a process that has the offer, and wakes when it is withdrawn, ends.
func TestHesitantIsLeft(t *testing.T) {
	each(t, drains, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path, hook("after-send offer 1 expire"))
		young := s.start(t, args("-control", path), hook("before-send taken 1 stop"))
		old.logged(`not taken over: pid \d+ \(uid \d+\) did not answer within`)
		young.stopped()
		young.signal(unix.SIGCONT)
		young.fails(`gave up on this process: "pid \d+ \(uid \d+\) did not answer within`)
		visits(t, old.addr())
		s.old(t, path)
		old.exits(0)
	})
}

// TestLyingSuccessors: whatever connects to the control socket, the server serves on, and the next
// true one takes over.
func TestLyingSuccessors(t *testing.T) {
	const hello = `{"type":"hello","min":1,"max":1}`
	for name, row := range map[string]struct {
		lie  func(l *liar)
		says string
	}{
		"hangs up":         {func(l *liar) { l.hangUp() }, `hello from pid \d+ \(uid \d+\): is gone`},
		"nonsense":         {func(l *liar) { l.send("nonsense") }, `bad record`},
		"another type":     {func(l *liar) { l.send(`{"type":"taken"}`) }, `says "taken"`},
		"a newer build":    {func(l *liar) { l.send(`{"type":"hello","min":7,"max":9}`) }, `speaks versions 7 to 9 of the protocol; this is pid \d+, with 1 to 1: start a build in between first`},
		"no version":       {func(l *liar) { l.send(`{"type":"hello"}`) }, `speaks versions 0 to 0`},
		"descriptors":      {func(l *liar) { l.send(hello, 0, 1) }, `bad record`},
		"refuses":          {func(l *liar) { l.send(hello); l.offered(); l.send(`{"type":"refused","reason":"no"}`) }, `refused: "no"`},
		"dies":             {func(l *liar) { l.send(hello); l.offered(); l.hangUp() }, `is gone`},
		"answers nonsense": {func(l *liar) { l.send(hello); l.offered(); l.send("nonsense") }, `broke the protocol`},
		"says hello again": {func(l *liar) { l.send(hello); l.offered(); l.send(hello) }, `broke the protocol: it answered "hello"`},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, drains, func(t *testing.T, s step) {
				path := meetingPlace(t)
				old := s.old(t, path)
				c := dial(t, old.addr())
				c.echoed("hello")
				keeps := old.keepsFDs()
				row.lie(join(t, path))
				old.logged(`not taken over: .*` + row.says)
				keeps()
				c.echoed("still here")
				visits(t, old.addr())
				s.old(t, path)
				c.finish("")
				old.exits(0)
			})
		})
	}
}

// offered receives an offer, and closes what came with it.
func (l *liar) offered() {
	l.t.Helper()
	m, fds := l.receive()
	if m.Type != "offer" || len(fds) < 3 {
		l.t.Errorf("received %+v with %d descriptors", m, len(fds))
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestSilentSuccessors: processes that connect and say nothing keep nobody out.
func TestSilentSuccessors(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path) // which waits for an hour for each
		for range 10 {
			join(t, path)
		}
		s.old(t, path)
		old.exits(0)
	})
}

// TestLyingPredecessors: whatever the process at the path says, the next one does not serve what is
// not so. It says what is wrong, in one line.
func TestLyingPredecessors(t *testing.T) {
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(null) }) // not before the subtests have ended
	const offer = `{"type":"offer","version":1,"totals":{"generation":3}}`
	for name, row := range map[string]struct {
		lie  func(l *liar)
		says string
	}{
		"refuses":               {func(l *liar) { l.send(`{"type":"refused","reason":"no"}`) }, `gave up on this process: "no"`},
		"speaks of nothing":     {func(l *liar) { l.send(`{"type":"taken"}`) }, `gave up on this process`},
		"nonsense":              {func(l *liar) { l.send("nonsense") }, `bad record`},
		"an unknown version":    {func(l *liar) { l.send(`{"type":"offer","version":2}`, null, null) }, `an offer with 2 descriptors, in version 2 of the protocol`},
		"nothing comes with it": {func(l *liar) { l.send(offer) }, `an offer with 0 descriptors`},
		"no control socket":     {func(l *liar) { l.send(offer, null, null) }, `not a control socket|not supported`},
		"not listening":         {func(l *liar) { l.send(offer, l.fd, null) }, `not a control socket: SO_ACCEPTCONN is 0`},
		"no listener":           {func(l *liar) { l.send(offer, unixListener(t), null, null) }, `is no listener`},
		"not for TCP":           {func(l *liar) { l.send(offer, unixListener(t), null, unixListener(t)) }, `is no listener: .*not one for TCP`},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, drains, func(t *testing.T, s step) {
				path := meetingPlace(t)
				listener := newLiar(t)
				if err := errors.Join(unix.Bind(listener.fd, &unix.SockaddrUnix{Name: path}), unix.Listen(listener.fd, 1)); err != nil {
					t.Fatal(err)
				}
				young := s.start(t, args("-control", path, "-addr", "127.0.0.1:0"))
				l := listener.accept()
				if m, _ := l.receive(); m.Type != "hello" {
					t.Errorf("it says %+v", m)
				}
				row.lie(l)
				young.fails(row.says)
			})
		})
	}
}

func (l *liar) accept() *liar {
	l.t.Helper()
	fd := -1
	err := uninterrupted(func() (err error) {
		fd, _, err = unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return newLiarOn(l.t, fd)
}

// unixListener is a listening unix socket.
func unixListener(t *testing.T) int {
	t.Helper()
	l := newLiar(t)
	if err := errors.Join(unix.Bind(l.fd, &unix.SockaddrUnix{Name: meetingPlace(t)}), unix.Listen(l.fd, 1)); err != nil {
		t.Fatal(err)
	}
	return l.fd
}

// TestManyStartTogether: of processes that start together, with a dead one's path in their way, each
// takes over from another, until one serves, and it has the listener of the first.
func TestManyStartTogether(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		s.old(t, path).kill()
		var all []*process
		for range rounds(5, 20) {
			all = append(all, s.start(t, args("-control", path, "-addr", "127.0.0.1:0")))
		}
		var last *process
		eventually(t, "all but one have drained", func() bool {
			running := 0
			for _, p := range all {
				select {
				case <-p.done:
				default:
					running, last = running+1, p
				}
			}
			return running == 1
		})
		for _, p := range all {
			if p != last {
				p.exits(0)
			}
			if p.addr() != last.addr() {
				t.Errorf("one listened on %s, another on %s", p.addr(), last.addr())
			}
		}
		if got := last.counted()[0]; got != len(all) {
			t.Errorf("the last is generation %d of %d", got, len(all))
		}
	})
}

// TestRestartsUnderLoad: restart after restart, while clients come and go. None is refused, and no
// byte is lost.
func TestRestartsUnderLoad(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		p := s.old(t, path)
		addr := p.addr()
		var clients sync.WaitGroup
		var over atomic.Bool
		var visits atomic.Int64
		for range 8 {
			clients.Go(func() {
				for !over.Load() {
					if err := visit(addr); err != nil {
						t.Error(err)
						return
					}
					visits.Add(1)
				}
			})
		}
		for range rounds(10, 50) {
			seen := visits.Load()
			next := s.old(t, path, args("-drain", "1h"))
			p.exits(0)
			p = next
			eventually(t, "clients come", func() bool { return visits.Load() > seen+20 || t.Failed() })
		}
		over.Store(true)
		clients.Wait()
		eventually(t, fmt.Sprintf("%d connections and lines are counted", visits.Load()), func() bool {
			got := p.counted()
			return int64(got[2]) == visits.Load() && int64(got[3]) == visits.Load()
		})
	})
}

// visits is a client that comes and goes.
func visits(t *testing.T, addr string) {
	t.Helper()
	if err := visit(addr); err != nil {
		t.Errorf("client of %s: %v", addr, err)
	}
}

// visit is one client: it says a line, hears it, and leaves.
func visit(addr string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline()); err != nil {
		return err
	}
	want := c.LocalAddr().String() + "\n"
	if _, err := io.WriteString(c, want); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != want {
		return fmt.Errorf("%q came back as %q, %w", want, got, err)
	}
	return nil
}

// TestFullServerIsReplaced: a server whose descriptors are all in use can be replaced, also by
// itself, and who waits for a free one is served by the next process.
func TestFullServerIsReplaced(t *testing.T) {
	for _, how := range []string{"started", "SIGUSR2"} {
		t.Run(how, func(t *testing.T) {
			each(t, restarts, func(t *testing.T, s step) {
				path := meetingPlace(t)
				old := s.old(t, path, limited(80))
				addr := old.addr()
				var all []*client
				for range 80 - 64 {
					c := dial(t, addr)
					c.echoed("hello")
					all = append(all, c)
				}
				if got := old.counted(); got[1] != len(all) {
					t.Fatalf("%d clients, want %d", got[1], len(all))
				}
				waits := dial(t, addr)
				waits.send("is there room?\n")
				if how == "started" {
					s.old(t, path)
				} else {
					old.signal(unix.SIGUSR2)
				}
				if s.moves { // the next process is as full
					eventually(t, "another serves", func() bool { return strings.Contains(old.err.String(), "taken over by") })
					all[0].finish("")
					all = all[1:]
				}
				waits.expect("is there room?")
				for _, c := range all {
					c.echoed("still here")
					c.finish("")
				}
				old.exits(0)
				endChild(t, old)
			})
		})
	}
}

// limited starts a process with a limit of descriptors that it cannot raise.
func limited(fds int) how {
	return func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, fds), cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}
}

// child waits until a server has started another by itself and that serves. It ends with the test.
func (p *process) child() (pid int) {
	p.t.Helper()
	fmt.Sscan(p.logged(`started pid (\d+)`)[1], &pid)
	p.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) }) // it may have ended
	p.logged(fmt.Sprintf(`server\[%d\]: listening on `, pid))
	return pid
}

// endChild ends what a server has started, if it has.
func endChild(t *testing.T, p *process) {
	t.Helper()
	if strings.Contains(p.err.String(), "started pid") {
		if err := unix.Kill(p.child(), unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
}

// install copies a program, and leaves that to another process: what this one has open for writing,
// its other children inherit for a moment, and nobody can run it then (ETXTBSY in execve(2)).
func install(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

// TestSIGUSR2: the server starts the program at its path again, whatever has happened to that, to the
// control path, and to the working directory.
func TestSIGUSR2(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, dir string){
		"as it was": func(*testing.T, string) {},
		"renamed, and another in its place": func(t *testing.T, dir string) {
			program := filepath.Join(dir, "program")
			if err := os.Rename(program, program+".bak"); err != nil {
				t.Fatal(err)
			}
			install(t, program+".bak", program)
		},
		"no control path": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "control")); err != nil {
				t.Fatal(err)
			}
		},
		"no working directory": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "work")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, restarts, func(t *testing.T, s step) {
				dir := folder(t)
				install(t, filepath.Join(bin, s.name), filepath.Join(dir, "program"))
				if err := os.Mkdir(filepath.Join(dir, "work"), 0o755); err != nil {
					t.Fatal(err)
				}
				old := start(t, filepath.Join(dir, "program"), intoFile(t), patient, args("-addr", "127.0.0.1:0", "-control", "../control"), func(cmd *exec.Cmd) {
					cmd.Dir = filepath.Join(dir, "work")
				})
				addr := old.addr()
				c := dial(t, addr)
				c.echoed("hello")
				change(t, dir)
				for range 100 { // a flood of another signal drowns it not
					old.signal(unix.SIGUSR1)
				}
				old.signal(unix.SIGUSR2)
				pid := old.child()
				if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != filepath.Join(dir, "program") {
					t.Errorf("it runs %s (%v)", exe, err)
				}
				visits(t, addr)
				c.echoed("with the old one")
				c.finish("")
				old.exits(0)
				next := start(t, filepath.Join(dir, "program"), intoFile(t), patient, args("-control", filepath.Join(dir, "control"))) // it finds the path
				next.logged(fmt.Sprintf(`taken over from pid %d .*, generation 2`, pid))
			})
		})
	}
}

// TestSIGUSR2InVain: what is at the path does not take over. The server serves on, tells its
// supervisor that it is ready again, and can still be replaced.
func TestSIGUSR2InVain(t *testing.T) {
	for name, script := range map[string]string{
		"it exits 0":       "#!/bin/sh\nexit 0\n",
		"it fails":         "#!/bin/sh\nexit 3\n",
		"it is no program": "nothing",
		"it is not there":  "",
	} {
		t.Run(name, func(t *testing.T) {
			each(t, restarts, func(t *testing.T, s step) {
				dir := folder(t)
				program, path := filepath.Join(dir, "program"), filepath.Join(dir, "control")
				install(t, filepath.Join(bin, s.name), program)
				supervisor := notified(t)
				old := start(t, program, intoFile(t), patient, args("-addr", "127.0.0.1:0", "-control", path), supervisor.env())
				supervisor.hears("READY=1", fmt.Sprintf("MAINPID=%d", old.pid))
				if err := os.Remove(program); err != nil {
					t.Fatal(err)
				}
				if script != "" {
					if err := os.WriteFile(program+".sh", []byte(script), 0o755); err != nil {
						t.Fatal(err)
					}
					install(t, program+".sh", program)
				}
				old.signal(unix.SIGUSR2)
				supervisor.hears("RELOADING=1", "MONOTONIC_USEC=")
				old.logged(`started again, and not taken over`)
				supervisor.hears("READY=1")
				visits(t, old.addr())
				s.old(t, path)
				old.exits(0)
			})
		})
	}
}

// TestHaste: SIGTERM right behind SIGUSR2 ends nobody's connection: the next process is taking over.
func TestHaste(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		for range rounds(5, 50) {
			path := meetingPlace(t)
			old := s.old(t, path)
			addr := old.addr()
			c := dial(t, addr)
			c.echoed("hello")
			old.signal(unix.SIGUSR2)
			old.logged(`started pid \d+`)
			_ = old.cmd.Process.Signal(unix.SIGTERM) // where connections move, it may have ended by now
			pid := old.child()
			visits(t, addr)
			c.echoed("with the old one")
			c.finish("")
			old.exits(0)
			if err := unix.Kill(pid, unix.SIGTERM); err != nil {
				t.Error(err)
			}
			eventually(t, "the path is removed", func() bool { _, err := os.Lstat(path); return os.IsNotExist(err) })
		}
	})
}

// supervisor is a notification socket, as systemd has one (sd_notify(3)).
type supervisor struct {
	t *testing.T
	*net.UnixConn
	path string
}

func notified(t *testing.T) *supervisor {
	t.Helper()
	path := filepath.Join(folder(t), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		err = c.SetReadDeadline(deadline())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // nobody listens any more
	return &supervisor{t, c, path}
}

func (s *supervisor) env() how { return env("NOTIFY_SOCKET=" + s.path) }

// hears reads a message, whose lines begin like these.
func (s *supervisor) hears(lines ...string) {
	s.t.Helper()
	record := make([]byte, 4<<10)
	n, err := s.Read(record)
	got := strings.Split(string(record[:n]), "\n")
	same := err == nil && len(got) == len(lines)
	for i := 0; same && i < len(lines); i++ {
		same = strings.HasPrefix(got[i], lines[i])
	}
	if !same {
		s.t.Fatalf("the supervisor hears %q (%v), want %q", got, err, lines)
	}
}

// TestSupervisor: what systemd hears in the life of a server.
func TestSupervisor(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path, supervisor := meetingPlace(t), notified(t)
		old := s.old(t, path, supervisor.env())
		supervisor.hears("READY=1", fmt.Sprintf("MAINPID=%d", old.pid))
		old.signal(unix.SIGUSR2)
		supervisor.hears("RELOADING=1", "MONOTONIC_USEC=")
		pid := old.child()
		supervisor.hears("READY=1", fmt.Sprintf("MAINPID=%d", pid))
		old.exits(0)
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		supervisor.hears("STOPPING=1")
	})
}

// TestMainPID: when the old process hears that the new one serves, and so may end, the supervisor has been
// told before whom to watch.
func TestMainPID(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path, supervisor := meetingPlace(t), notified(t)
		old := s.old(t, path)
		young := s.start(t, args("-control", path), supervisor.env(), hook("before-send serving 1 stop"))
		young.stopped()
		supervisor.hears("READY=1", fmt.Sprintf("MAINPID=%d", young.pid))
		select {
		case <-old.done:
			t.Error("the old process has not waited for that")
		default:
		}
		young.signal(unix.SIGCONT)
		old.exits(0)
		visits(t, young.addr())
	})
}

// TestWithdrawFails: the word that takes an offer back cannot be sent (ENOBUFS). The old process does not
// act as if it had been: when the new one wakes, it finds the word, and not an orphan.
func TestWithdrawFails(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path, hook("after-send offer 1 expire", "before-send withdraw 1 fail"))
		young := s.start(t, args("-control", path), hook("before-send taken 1 stop"))
		young.stopped()
		old.logged(`withdraw: no buffer space available; trying again`)
		old.logged(`not taken over: `)
		young.signal(unix.SIGCONT)
		young.fails(`gave up on this process: "pid \d+ \(uid \d+\) did not answer within`)
		visits(t, old.addr())
		s.old(t, path)
		old.exits(0)
	})
}

// TestGivenOnce: a process that has said hello while another one was taking over is offered nothing by
// the old one. It finds the one that has everything.
func TestGivenOnce(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		one := s.start(t, args("-control", path), hook("before-send taken 1 stop"))
		one.stopped() // the offer is open
		other := s.start(t, args("-control", path), hook("after-send hello 1 stop"))
		other.stopped()
		one.signal(unix.SIGCONT)
		one.logged(`listening on `)
		other.signal(unix.SIGCONT)
		other.logged(fmt.Sprintf(`taken over from pid %d `, one.pid))
		old.exits(0)
		one.exits(0)
		visits(t, other.addr())
	})
}

// TestDeafSupervisor: nobody reads the notification socket, and it is full. Takeovers and SIGTERM
// work all the same.
func TestDeafSupervisor(t *testing.T) {
	each(t, drains, func(t *testing.T, s step) {
		path, supervisor := meetingPlace(t), notified(t)
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: supervisor.path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for err == nil {
			err = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			if err == nil {
				_, err = c.Write([]byte("full"))
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		old := s.old(t, path, supervisor.env())
		old.logged(`notify .*: it has not been told \["READY=1" `)
		next := s.old(t, path, supervisor.env())
		old.exits(0)
		next.signal(unix.SIGTERM)
		next.exits(0)
	})
}

// TestActivation: a server that is started with listeners (sd_listen_fds(3)) serves them, as the first
// or as the next, and no program that it starts inherits them.
func TestActivation(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		activated := func(addrs ...string) (*process, string) {
			t.Helper()
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			p := s.start(t, args("-control", path), args(addrs...), func(cmd *exec.Cmd) {
				cmd.ExtraFiles = []*os.File{f}
				cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
				cmd.Path = "/bin/sh"
			})
			p.logged(`listening on ` + regexp.QuoteMeta(l.Addr().String()) + `$`)
			return p, l.Addr().String()
		}
		first, addr := activated()
		visits(t, addr)
		second, addr2 := activated()
		first.exits(0)
		third, addr3 := activated("-addr", addr)
		second.exits(0)
		eventually(t, "nobody asks for it any more", func() bool { return len(listening(t, addr2)) == 0 })
		visits(t, addr)
		visits(t, addr3)
		for number := range third.fds() {
			info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", third.pid, number))
			if err != nil || number < 3 {
				continue // closed by now
			}
			var flags int
			fmt.Sscanf(regexp.MustCompile(`flags:\s*(\d+)`).FindStringSubmatch(string(info))[1], "%o", &flags)
			if what := third.fds()[number]; strings.HasPrefix(what, "socket:") && flags&unix.O_CLOEXEC == 0 {
				t.Errorf("descriptor %d, %s, is not close-on-exec", number, what)
			}
		}
	})
}

// TestSignalsWhileItStarts: a signal that comes before the new process serves does not end it.
func TestSignalsWhileItStarts(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		for _, at := range []string{"before-send hello 1 stop", "after-send taken 1 stop"} {
			path := meetingPlace(t)
			old := s.old(t, path)
			young := s.start(t, args("-control", path), hook(at))
			young.stopped()
			young.signal(unix.SIGUSR1)
			young.signal(unix.SIGCONT)
			young.logged(`generation 2: clients 0`)
			old.exits(0)
			visits(t, young.addr())
			young.kill()
		}
	})
}

// TestProcessOne: the first process of a container must not end while another serves, as the kernel
// would end all of it. So it refuses, in words.
func TestProcessOne(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		container := func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWPID
			id := []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
			cmd.SysProcAttr.UidMappings = id
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		}
		if out, err := tryIn(container); err != nil {
			t.Skipf("no namespaces here: %v %s", err, out)
		}
		old := s.old(t, path, container)
		old.logged(`server\[1\]: listening`)
		c := dial(t, old.addr())
		c.echoed("hello")
		s.start(t, args("-control", path)).fails(`with pid 1 the kernel would end all of its container: start the server below a process that stays`)
		c.echoed("still here")
		visits(t, old.addr())
	})
}

func tryIn(container how) (string, error) {
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	container(cmd)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestStoppedPredecessor: the process that serves is stopped. The next one says what to do, and takes
// over when it goes on.
func TestStoppedPredecessor(t *testing.T) {
	long(t) // it waits for some seconds before it gives up
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		old.stop()
		s.start(t, args("-control", path)).fails(`pid \d+ \(uid \d+\) does not answer: is it stopped\? Then send it SIGCONT, or SIGKILL`)
		old.signal(unix.SIGCONT)
		s.old(t, path)
		old.exits(0)
	})
}

// TestNoRoomForTheOffer: the next process has no descriptor free for what it is offered. It says so, and
// nothing has changed.
func TestNoRoomForTheOffer(t *testing.T) {
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		c := dial(t, old.addr())
		c.echoed("hello")
		young := s.start(t, args("-control", path), hook("after-send hello 1 stop"))
		young.stopped()
		young.limitFDs(0)
		young.signal(unix.SIGCONT)
		young.fails(`offer from pid \d+ .*descriptors lost \(MSG_CTRUNC\): is this process out of descriptors\? \(ulimit -n\)`)
		visits(t, old.addr())
		s.old(t, path)
		c.echoed("still here")
		c.finish("")
		old.exits(0)
	})
}

// TestPathRemoved: somebody has removed the control path. Who starts the server once more is told
// what helps.
func TestPathRemoved(t *testing.T) {
	long(t) // it looks again for some seconds before it gives up
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		s.start(t, args("-control", path)).fails(`lock .*: resource temporarily unavailable: .* SIGUSR2`)
		visits(t, old.addr())
	})
}

// TestAnotherUsersServer: another user's process is refused in words, and asks nobody.
func TestAnotherUsersServer(t *testing.T) {
	needsRoot(t)
	each(t, restarts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
		dir := folder(t)
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		theirs := s.old(t, filepath.Join(dir, "control"), as(nobody))
		s.start(t, args("-control", filepath.Join(dir, "control"))).fails(`pid \d+ \(uid 65534\) is another user's process`)
		visits(t, theirs.addr())
		visits(t, old.addr())
	})
}
