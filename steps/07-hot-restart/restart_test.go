//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The stories: what clients see of a restart, which is nothing.

// startServer runs the command once more, with as much time as a busy machine may need. It returns
// when that process serves.
func startServer(t testing.TB, path string, more ...string) *process {
	t.Helper()
	p := startWith(t, quiet, append([]string{"-addr", "127.0.0.1:0", "-control", path, "-takeover-timeout", patience.String()}, more...)...)
	p.addr()
	return p
}

// quiet throws away what a process prints of the lines that it receives.
func quiet(cmd *exec.Cmd) { cmd.Stdout = nil }

// expectEnd expects that a process ends well.
func expectEnd(t testing.TB, p *process) {
	t.Helper()
	if status := p.status(); status != 0 {
		t.Errorf("pid %d: exit status %d, want 0", p.pid(), status)
	}
}

func TestStartItAgain(t *testing.T) {
	path := meetingPlace(t)
	first := start(t, "-addr", "127.0.0.1:0", "-control", path)
	idle, inside, ended := dial(t, first.addr()), dial(t, first.addr()), dial(t, first.addr())
	idle.echoed("to the first")
	first.printed(`^"to the first\\n"$`)
	inside.send("one\nhalf a ")
	inside.expect("one")
	ended.send("no newline")
	eventually(t, "the first has read the half lines", func() bool {
		ends := serverEnds(t)
		return ends[inside.ports()].unread == 0 && ends[ended.ports()].unread == 0
	})
	before := socketsOf(t, first, idle, inside, ended)

	second := start(t, "-addr", "127.0.0.1:0", "-control", path)
	if was, is := first.addr(), second.addr(); was != is {
		t.Errorf("the first listened on %s, the second listens on %s", was, is)
	}
	expectEnd(t, first)
	if after := socketsOf(t, second, idle, inside, ended); after != before {
		t.Errorf("sockets before: %v, after: %v", before, after)
	}
	idle.echoed("to the second")
	second.printed(`^"to the second\\n"$`)
	inside.send("line\n")
	inside.expect("half a line")
	ended.finish("no newline")
	dial(t, second.addr()).echoed("a new client")

	third := startServer(t, path)
	expectEnd(t, second)
	idle.echoed("to the third")
	inside.finish("")
	third.signal(unix.SIGTERM)
	idle.ended()
	expectEnd(t, third)
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// socketsOf is the inodes of the server's ends of connections, all of which a process must have.
func socketsOf(t *testing.T, p *process, clients ...*client) (inodes [3]uint64) {
	t.Helper()
	ends, open := serverEnds(t), p.descriptors()
	has := map[string]bool{}
	for _, link := range open {
		has[link] = true
	}
	for i, c := range clients {
		inodes[i] = ends[c.ports()].inode
		if !has[fmt.Sprintf("socket:[%d]", inodes[i])] {
			t.Errorf("pid %d does not have socket %d", p.pid(), inodes[i])
		}
	}
	return inodes
}

// serverEnd is what /proc/net/tcp says of the server's end of a connection (proc_net(5)).
type serverEnd struct {
	inode  uint64
	unread int64 // bytes that wait in the socket
}

// ports are the server's port and the client's.
type ports struct{ server, client int }

func (c *client) ports() ports {
	return ports{c.RemoteAddr().(*net.TCPAddr).Port, c.LocalAddr().(*net.TCPAddr).Port}
}

// serverEnds lists the TCP sockets on the loopback interface.
func serverEnds(t testing.TB) map[ports]serverEnd {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	ends := map[ports]serverEnd{}
	for line := range strings.Lines(string(table)) {
		var p ports
		var written int64
		var end serverEnd
		f := strings.Fields(line) // slot, local, remote, state, queues, ..., inode
		line = strings.Join([]string{f[1], f[2], f[4], f[9]}, " ")
		if _, err := fmt.Sscanf(line, "0100007F:%X 0100007F:%X %X:%X %d", &p.server, &p.client, &written, &end.unread, &end.inode); err == nil {
			ends[p] = end
		}
	}
	return ends
}

// Ten restarts under load: nothing lost, doubled, reordered, reset or refused, and each time the
// old process has gone.
func TestTenRestartsUnderLoad(t *testing.T) {
	talkers, restarts := 200, 10
	if short() {
		talkers, restarts = 10, 2
	}
	path := meetingPlace(t)
	server := startServer(t, path)
	l := startLoad(t, server.addr(), talkers)
	for range restarts {
		l.goesOn()
		next := startServer(t, path)
		begin := time.Now()
		expectEnd(t, server)
		t.Logf("%s; the old one ended %v later", next.logged(`connections moved: .*`)[0], time.Since(begin).Round(time.Microsecond))
		server = next
	}
	l.goesOn()
	l.stop()
	now := stateOf(t, server)
	if now.generation != restarts+1 || now.connections != 0 || now.everConnections != int(l.dialled.Load()) {
		t.Errorf("%+v, want generation %d and %d connections since the first", now, restarts+1, l.dialled.Load())
	}
	if now.everLines < int(l.lines.Load()) { // long lines count once for each piece
		t.Errorf("%d lines were counted, and %d received", now.everLines, l.lines.Load())
	}
}

// goesOn waits until as many lines again have come back as there are clients.
func (l *load) goesOn() {
	l.t.Helper()
	until := l.lines.Load() + 200
	eventually(l.t, "the clients go on", func() bool { return l.t.Failed() || l.lines.Load() >= until })
}

// said is the line of state.
type said struct {
	generation, listeners, connections, goroutines, everConnections, everLines int
}

// stateOf asks a process for its state, and waits until its last client has gone.
func stateOf(t testing.TB, p *process) (s said) {
	t.Helper()
	asked := len(p.err.all(`: generation \d+: `))
	eventually(t, "an answer to SIGUSR1, without connections", func() bool {
		p.signal(unix.SIGUSR1)
		asked++
		eventually(t, "an answer to SIGUSR1", func() bool { return len(p.err.all(`: generation \d+: `)) >= asked })
		answers := p.err.all(`generation \d+: .*`)
		_, err := fmt.Sscanf(answers[len(answers)-1][0], "generation %d: listeners %d, connections %d, goroutines %d; since generation 1: connections %d, lines %d",
			&s.generation, &s.listeners, &s.connections, &s.goroutines, &s.everConnections, &s.everLines)
		if err != nil {
			t.Fatal(err)
		}
		return s.connections == 0
	})
	return s
}

// As many connections as the limits allow, up to 10 000.
func TestTenThousand(t *testing.T) {
	n := 10_000
	if short() {
		n = 260
	}
	n = affordable(t, n)
	path := meetingPlace(t)
	server := startServer(t, path)
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = dial(t, server.addr())
		clients[i].send(fmt.Sprintf("hello\nhalf of %d ", i))
		clients[i].expect("hello")
	}
	for range 2 {
		next := startServer(t, path)
		if moved := next.logged(`connections moved: (\d+),`)[1]; moved != strconv.Itoa(n) {
			t.Errorf("%s of %d connections moved", moved, n)
		}
		expectEnd(t, server)
		server = next
	}
	for i, c := range clients {
		c.send("a line\n")
		c.expect(fmt.Sprintf("half of %d a line", i))
	}
}

// affordable raises the limit of descriptors of this process and its children, as far as it may,
// and returns how many connections that allows.
func affordable(t testing.TB, n int) int {
	t.Helper()
	const others = 500
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	need := uint64(n + others)
	if limit.Cur >= need {
		return n
	}
	more := unix.Rlimit{Cur: need, Max: max(limit.Max, need)}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &more); err != nil {
		more = unix.Rlimit{Cur: limit.Max, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &more); err != nil {
			t.Fatal(err)
		}
		t.Logf("scaled down from %d to %d connections: setrlimit RLIMIT_NOFILE %d: %v", n, limit.Max-others, need, err)
	}
	return min(n, int(more.Cur)-others)
}

// Ten restarts leave nothing behind: no descriptor, goroutine, memory or file.
func TestNothingLeaks(t *testing.T) {
	path := meetingPlace(t)
	server := startServer(t, path)
	stays := dial(t, server.addr())
	var first, last usage
	restarts := 11
	if short() {
		restarts = 4
	}
	for i := range restarts {
		stays.echoed("hello")
		next := startServer(t, path)
		expectEnd(t, server)
		server = next
		last = usageOf(t, server)
		if i == 0 {
			first = last // what the second generation has, all later ones have
		}
	}
	if last.descriptors != first.descriptors || last.goroutines > first.goroutines {
		t.Errorf("after one restart: %+v; after %d: %+v", first, restarts, last)
	}
	if last.kilobytes > 2*first.kilobytes {
		t.Errorf("%d KiB after one restart, %d after %d", first.kilobytes, last.kilobytes, restarts)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside the control socket: %v, %v", left, err)
	}
}

// usage is what a process takes from the machine.
type usage struct {
	descriptors           string // what kinds, sorted
	goroutines, kilobytes int
}

func usageOf(t *testing.T, p *process) (u usage) {
	t.Helper()
	kinds := map[string]int{}
	for _, link := range p.descriptors() {
		kind, _, _ := strings.Cut(link, ":[")
		kinds[kind]++
	}
	u.descriptors = fmt.Sprint(kinds)
	p.signal(unix.SIGUSR1)
	var err error
	if u.goroutines, err = strconv.Atoi(p.logged(`goroutines (\d+)`)[1]); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rest, &u.kilobytes); err != nil {
		t.Fatal(err)
	}
	return u
}

// A process that was offered the connections in vain, and sleeps, has descriptors of them. Clients
// get their end-of-file all the same, also from the process that has taken over since.
func TestEndsForEverybody(t *testing.T) {
	waits(t)
	path := meetingPlace(t)
	first := startServer(t, path, "-takeover-timeout", "1s")
	one, two := dial(t, first.addr()), dial(t, first.addr())
	one.echoed("hello")
	two.echoed("hello")
	sleeper := startWith(t, func(cmd *exec.Cmd) {
		quiet(cmd)
		cmd.Env = append(cmd.Env, stopAt+`=sending .*"taken","id":2`)
	}, "-v", "-addr", "127.0.0.1:0", "-control", path)
	sleeper.stopped()
	first.logged(`not taken over: .* did not answer within 1s`)
	one.finish("")
	second := startServer(t, path)
	expectEnd(t, first)
	two.echoed("with the second")
	two.finish("")
	sleeper.signal(unix.SIGCONT)
	sleeper.logged(`gave up: ".* did not answer within 1s"`)
	if status := sleeper.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	dial(t, second.addr()).echoed("a new one")
}

// A client resets its connection while that is on its way: no reason to refuse those of the others.
func TestResetMeanwhile(t *testing.T) {
	path := meetingPlace(t)
	first := startServer(t, path, "-takeover-timeout", patience.String())
	resets, stays := dial(t, first.addr()), dial(t, first.addr())
	resets.echoed("hello")
	stays.echoed("hello")
	second := startWith(t, func(cmd *exec.Cmd) {
		quiet(cmd)
		cmd.Env = append(cmd.Env, stopAt+`=received .*"kind":"connections"`)
	}, "-v", "-addr", "127.0.0.1:0", "-control", path)
	second.stopped()
	if err := errorOf(resets.SetLinger(0), resets.Close()); err != nil { // a reset
		t.Fatal(err)
	}
	second.signal(unix.SIGCONT)
	second.logged(`connections moved: 2,`)
	expectEnd(t, first)
	stays.echoed("with the second")
}

// A server that is out of descriptors can be restarted: by one that may have more.
func TestOutOfDescriptors(t *testing.T) {
	path := meetingPlace(t)
	first := startServer(t, path)
	addr := first.addr()
	var clients []*client
	for range crowdSize() {
		clients = append(clients, dial(t, addr))
		clients[len(clients)-1].echoed("hello")
	}
	// One more: for the process that comes to take over.
	limit := unix.Rlimit{Cur: uint64(lowestFree(first) + 1), Max: uint64(lowestFree(first) + 1)}
	if err := unix.Prlimit(first.pid(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	startServer(t, path)
	expectEnd(t, first)
	for _, c := range clients {
		c.echoed("still here")
	}
	dial(t, addr).echoed("a new one")
}

// lowestFree is the number of the next descriptor that a process opens.
func lowestFree(p *process) int {
	open := p.descriptors()
	free := 0
	for open[strconv.Itoa(free)] != "" {
		free++
	}
	return free
}

// A connection that stays is served by the old process to its end. Meanwhile the new one is the
// server, and may be restarted itself.
func TestStay(t *testing.T) {
	path := meetingPlace(t)
	first := start(t, "-addr", "127.0.0.1:0", "-control", path)
	stays, moves := dial(t, first.addr()), dial(t, first.addr())
	stays.send("one\n stay \nthree\n")
	stays.expect("one")
	stays.expect(fmt.Sprintf("* stays with pid %d", first.pid()))
	stays.expect("three")
	moves.echoed("hello")
	second := start(t, "-addr", "127.0.0.1:0", "-control", path)
	second.addr()
	first.logged(`connections to serve to their end: 1$`)
	third := start(t, "-addr", "127.0.0.1:0", "-control", path)
	third.addr()
	expectEnd(t, second)
	stays.echoed("still with the first")
	first.printed(`^"still with the first\\n"$`)
	moves.echoed("with the third")
	third.printed(`^"with the third\\n"$`)
	stays.finish("")
	expectEnd(t, first)
}

// What stays longer than the old process may is sent away, with all that it has sent answered.
func TestDrainEnds(t *testing.T) {
	path := meetingPlace(t)
	first := startServer(t, path, "-drain", "100ms")
	stays := dial(t, first.addr())
	stays.send("STAY\n")
	stays.expect(fmt.Sprintf("* stays with pid %d", first.pid()))
	startServer(t, path)
	stays.ended()
	first.logged(`connections that have not ended within 100ms: 1$`)
	expectEnd(t, first)
}

// Nobody reads what the old process prints: the client whose line it wants to print cannot be moved.
// All others can, and the old process ends when it is told to.
func TestBlockedOutput(t *testing.T) {
	waits(t)
	path := meetingPlace(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(r)
	first := startWith(t, func(cmd *exec.Cmd) { cmd.Stdout = w }, "-addr", "127.0.0.1:0", "-control", path)
	closeQuietly(w)
	moves, stuck := dial(t, first.addr()), dial(t, first.addr())
	moves.echoed("hello")
	go func() { _, _ = io.WriteString(stuck, strings.Repeat(strings.Repeat("x", 70)+"\n", 10_000)) }() // until it ends
	eventually(t, "the pipe is full", func() bool {
		var n int
		err := borrow(r, func(fd int) (err error) {
			n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		})
		return err == nil && n > 60_000
	})
	startServer(t, path)
	moves.echoed("with the second")
	first.logged(`connections that could not be stopped, and stay: 1$`)
	first.logged(`connections to serve to their end: 1$`)
	first.signal(unix.SIGTERM)
	first.logged(`connections that could not be ended in order: 1$`)
	expectEnd(t, first)
}

// SIGTERM: what a client has sent is answered before its connection ends.
func TestTermination(t *testing.T) {
	path := meetingPlace(t)
	server := startServer(t, path)
	idle, half, much := dial(t, server.addr()), dial(t, server.addr()), dial(t, server.addr())
	idle.echoed("hello")
	half.echoed("hello")
	half.send("half a line")
	sent := strings.Repeat(strings.Repeat("x", 99)+"\n", 1000)
	much.send(sent)
	server.signal(unix.SIGTERM)
	idle.ended()
	if rest, err := io.ReadAll(half.in); err != nil || string(rest) != "half a line" {
		t.Errorf("got %q, %v", rest, err)
	}
	if rest, err := io.ReadAll(much.in); err != nil || string(rest) != sent {
		t.Errorf("got %d bytes of %d, %v", len(rest), len(sent), err)
	}
	expectEnd(t, server)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the control path is still there: %v", err)
	}
}

// SIGTERM to the old process in the middle of a takeover: it ends when that has.
func TestTerminationDuringTakeover(t *testing.T) {
	for _, goesOn := range []bool{true, false} {
		t.Run(fmt.Sprintf("goes on %v", goesOn), func(t *testing.T) {
			if !goesOn {
				waits(t)
			}
			path := meetingPlace(t)
			timeout := patience
			if !goesOn {
				timeout = time.Second
			}
			first := startServer(t, path, "-takeover-timeout", timeout.String())
			c := dial(t, first.addr())
			c.send("hello\nhalf a ")
			c.expect("hello")
			second := startWith(t, func(cmd *exec.Cmd) {
				quiet(cmd)
				cmd.Env = append(cmd.Env, stopAt+`=received .*"kind":"connections"`)
			}, "-v", "-addr", "127.0.0.1:0", "-control", path)
			second.stopped()
			first.signal(unix.SIGTERM)
			if goesOn {
				second.signal(unix.SIGCONT)
				c.send("line\n")
				c.expect("half a line")
				second.addr()
			} else {
				// The client is told that this is the end, although the second has the socket too.
				if rest, err := io.ReadAll(c.in); err != nil || string(rest) != "half a " {
					t.Errorf("got %q, %v", rest, err)
				}
			}
			expectEnd(t, first)
		})
	}
}

func TestUsage(t *testing.T) {
	for _, wrong := range [][]string{{"-batch", "0"}, {"-batch", "253"}, {"-takeover-timeout", "0"}, {"-drain", "-1s"}, {"-addr", "nonsense"}, {"-nonsense"}, {"stray"}} {
		p := start(t, wrong...)
		if status := p.status(); status != 2 || len(p.err.all(``)) != 1 {
			t.Errorf("%v: exit status %d, want 2 and one line:\n%s", wrong, status, p.err)
		}
	}
}

func TestDemo(t *testing.T) {
	demo := start(t, "-demo")
	demo.logged(`^demo\[\d+\]: verdict: good: 5 restarts, 200 clients, `)
	expectEnd(t, demo)
}

// The verdict is computed: when a process dies in the middle, it is bad.
func TestDemoCanFail(t *testing.T) {
	demo := startWith(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, killAt+`=, generation 1`) }, "-demo")
	demo.logged(`verdict: BAD: the server ended before it served$`)
	if status := demo.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
}
