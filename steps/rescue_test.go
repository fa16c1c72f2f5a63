//go:build linux

package steps

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Servers and keepers that are killed, or hang, under clients that must not notice.

// startGroup starts a program in a process group of its own, and ends all of that with the test:
// whoever is left starts the others again. They log into one file.
func startGroup(t *testing.T, path string, with ...how) *process {
	t.Helper()
	p := start(t, path, append(with, func(cmd *exec.Cmd) {
		// SIGTERM, at which it ends the others too: if this test is killed, nothing is left.
		cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, unix.SIGTERM
	})...)
	t.Cleanup(func() {
		_ = unix.Kill(-p.pid, unix.SIGKILL)
		eventually(t, "the whole group ends", func() bool { return len(group(p.pid)) == 0 })
	})
	return p
}

// group returns the processes of a group that have not ended.
func group(pgid int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, _ := os.ReadFile(stat) // it may have ended
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest) // state, parent, group: proc_pid_stat(5)
		if len(f) > 2 && f[0] != "Z" && f[2] == strconv.Itoa(pgid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			pids = append(pids, pid)
		}
	}
	return pids
}

var reign = regexp.MustCompile(`(?m)^keeper\[(\d+)\]: server pid (\d+) has everything: connections (\d+)`)

// reigns returns what has served up to now: a keeper and a server each.
func (p *process) reigns() (all [][2]int) {
	for _, match := range reign.FindAllStringSubmatch(p.err.String(), -1) {
		keeper, _ := strconv.Atoi(match[1])
		server, _ := strconv.Atoi(match[2])
		all = append(all, [2]int{keeper, server})
	}
	return all
}

// reign waits until the nth keeper and server have everything.
func (p *process) reign(n int) (keeper, server int) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("somebody has everything for the time %d", n), func() bool { return len(p.reigns()) >= n })
	all := p.reigns()
	return all[len(all)-1][0], all[len(all)-1][1]
}

// strike sends a signal to a process, and waits until a keeper and a server have everything again.
func (p *process) strike(pid int, s syscall.Signal) (keeper, server int) {
	p.t.Helper()
	n := len(p.reigns())
	if err := unix.Kill(pid, s); err != nil {
		p.t.Fatalf("%v to pid %d: %v", s, pid, err)
	}
	return p.reign(n + 1)
}

// gaveUp waits until n connections have been given up, and somebody has everything again. (A server that dies of a
// line may do so before it has everything: so of three deaths the log may show fewer reigns.)
func (p *process) gaveUp(n int) (keeper, server int) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("connections given up: %d, and somebody has everything", n), func() bool {
		log := p.err.String()
		last := strings.LastIndex(log, "giving slot")
		return strings.Count(log, "giving slot") >= n && strings.Contains(log[last:], "has everything")
	})
	return p.reign(1)
}

// neverHangs is a patience that does not end: a slow machine is no hang.
func neverHangs() how { return args("-patience", "1h") }

// torrent is a client that sends what it likes, and compares what comes back, until stop: then it ends
// its side, and expects the rest.
type torrent struct {
	c        *client
	seed     int64
	halfway  bool // end the sending side early, and be long in reading
	slow     bool
	sent     chan int // how many bytes, once all are sent
	received atomic.Int64
}

// lines is the stream of a seed: binary, with lines of 1 byte to 128 KiB, which is more than a ring holds.
type lines struct{ *rand.Rand }

func (l lines) next() []byte {
	size := 1 << l.Intn(18)
	line := make([]byte, 1+l.Intn(size))
	l.Read(line)
	line[len(line)-1] = '\n'
	return line
}

func (f *torrent) send(stop *atomic.Bool) {
	total := 0
	defer func() { f.sent <- total }()
	for l := (lines{rand.New(rand.NewSource(f.seed))}); !stop.Load(); {
		// Not further ahead: hundreds of full queues are a shortage of memory for all of the machine's TCP,
		// and then it is not the server that is slow.
		for ahead := 1 << 20; total-int(f.received.Load()) > ahead && !stop.Load() && !f.c.t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		line := l.next()
		n, err := f.c.Write(line)
		if total += n; err != nil {
			f.c.t.Errorf("client %d: %v", f.seed, err)
			return
		}
		if f.halfway && total > 100_000 {
			break
		}
	}
	f.c.CloseWrite()
}

func (f *torrent) receive() {
	l, want := lines{rand.New(rand.NewSource(f.seed))}, []byte{}
	buffer := make([]byte, 32<<10)
	for total := 0; ; {
		if f.slow {
			time.Sleep(time.Millisecond) // it is slower than others, however slow that is
		}
		n, err := f.c.Read(buffer)
		for len(want) < n {
			want = append(want, l.next()...)
		}
		if !bytes.Equal(buffer[:n], want[:n]) {
			f.c.t.Errorf("client %d: received other bytes than it sent, from byte %d", f.seed, total)
			return
		}
		want, total = want[n:], total+n
		f.received.Store(int64(total))
		if err != nil {
			if sent := <-f.sent; !errors.Is(err, io.EOF) || total != sent {
				f.c.t.Errorf("client %d: received %d of %d bytes, and then: %v", f.seed, total, sent, err)
			}
			return
		}
	}
}

// flood starts clients of all kinds, and newcomers all the time. The returned function ends it.
func flood(t *testing.T, addr string, clients int, newcomers bool) (finish func()) {
	t.Helper()
	var stop atomic.Bool
	var all sync.WaitGroup
	idle := dial(t, addr)
	idle.echoed("idle")
	begun := make([]*torrent, clients)
	for i := range begun {
		f := &torrent{c: dial(t, addr), seed: int64(i), slow: i%4 == 1, halfway: i%4 == 2, sent: make(chan int, 1)}
		begun[i] = f
		all.Go(func() { f.send(&stop) })
		all.Go(f.receive)
	}
	for _, f := range begun {
		eventually(t, "the clients are busy", func() bool { return f.received.Load() > 0 || t.Failed() })
	}
	if newcomers {
		all.Go(func() {
			for !stop.Load() && !t.Failed() {
				if err := visit(addr); err != nil {
					t.Errorf("a newcomer: %v", err)
				}
			}
		})
	}
	return func() {
		t.Helper()
		stop.Store(true)
		all.Wait()
		idle.echoed("still idle")
		idle.finish("")
	}
}

// TestRescueUnderLoad: the server is killed at random moments under clients of all kinds. Each gets every
// byte once and in order, on the connection that it has had from the beginning.
func TestRescueUnderLoad(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		finish := flood(t, p.addr(), rounds(20, 100), true)
		_, server := p.reign(1)
		for range rounds(20, 500) {
			time.Sleep(time.Duration(rand.Intn(20)) * time.Millisecond) // any moment will do
			_, server = p.strike(server, unix.SIGKILL)
		}
		finish()
	})
}

// TestRescueAtSystemCalls: the server is killed as it enters the nth call of a kind, for each kind that
// matters and the first few n. strace(1) holds it there.
func TestRescueAtSystemCalls(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		strace, err := exec.LookPath("strace")
		if err != nil {
			t.Skip(err)
		}
		calls := []string{"read", "write", "recvmsg", "sendmsg", "getsockopt", "ioctl", "shutdown", "close", "fallocate"}
		for _, call := range calls {
			for n := 1; n <= rounds(2, 6); n++ {
				t.Run(fmt.Sprint(call, n), func(t *testing.T) {
					t.Parallel()
					p := s.old(t, "", neverHangs())
					clients := []*client{dial(t, p.addr()), dial(t, p.addr()), dial(t, p.addr())}
					for _, c := range clients {
						c.echoed("hello")
					}
					_, server := p.reign(1)
					spare := p.spare()
					tracer := start(t, strace, args("-f", "-qq", "-o", "/dev/null", "-p", strconv.Itoa(spare),
						"-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)))
					eventually(t, "strace has all its threads", func() bool {
						if closed(tracer.done) {
							t.Skipf("strace: %s", tracer.err)
						}
						return traced(spare)
					})
					p.strike(server, unix.SIGKILL)
					for i, c := range clients { // so each kind of call is made often enough
						for range n {
							c.echoed(strings.Repeat("x", 20_000))
						}
						if i > 0 {
							c.finish("")
						}
					}
					// strace counts for each thread, and the system decides which thread makes the call.
					eventually(t, "it is killed in the call", func() bool {
						visits(t, p.addr())
						clients[0].echoed("still here")
						return !slices.Contains(group(p.pid), spare)
					})
				})
			}
		}
	})
}

// spare returns the pid of the spare server, once it is in line.
func (p *process) spare() (pid int) {
	p.t.Helper()
	keeper, server := p.reign(1)
	eventually(p.t, "there is a spare server", func() bool {
		for _, line := range regexp.MustCompile(`(?m)^server\[(\d+)\]: ready$`).FindAllStringSubmatch(p.err.String(), -1) {
			if number, _ := strconv.Atoi(line[1]); number != server && number != keeper && unix.Kill(number, 0) == nil {
				pid = number
			}
		}
		return pid != 0
	})
	return pid
}

// traced reports whether all threads of a process have a tracer: proc_pid_status(5).
func traced(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if err != nil || strings.Contains(string(status), "TracerPid:\t0\n") {
			return false
		}
	}
	return len(threads) > 0
}

// closed reports whether a channel is closed.
func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestRescueKeepers: the keeper is killed, and the server, in turn, and with SIGTERM too. No client that
// is being served notices.
func TestRescueKeepers(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		finish := flood(t, p.addr(), rounds(10, 50), false)
		keeper, server := p.reign(1)
		for i := range rounds(10, 50) {
			keeper, _ = p.strike(keeper, unix.SIGKILL)
			visits(t, p.addr())
			_, server = p.strike(server, []syscall.Signal{unix.SIGKILL, unix.SIGTERM}[i%2])
			visits(t, p.addr())
		}
		finish()
		// A keeper that is told to end ends all of it, also a spare server that is stopped.
		eventually(t, "there is a spare server", func() bool { return len(group(p.pid)) == 3 })
		for _, pid := range group(p.pid) {
			if _, server := p.reign(1); pid != keeper && pid != server {
				if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := unix.Kill(keeper, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all end", func() bool { return len(group(p.pid)) == 0 })
	})
}

// TestRescueHangs: a server that stands still is killed: all of it, or one goroutine, which runs for ever or
// waits for ever. A client that makes it hang each time is given up.
func TestRescueHangs(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		for _, how := range []string{"SIGSTOP", "HANG", "DEADLOCK"} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				p := s.old(t, "", args("-patience", "1s"))
				c := dial(t, p.addr())
				c.echoed("hello")
				if how == "SIGSTOP" { // of the next one too
					_, server := p.reign(1)
					if err := unix.Kill(p.spare(), unix.SIGSTOP); err != nil {
						t.Fatal(err)
					}
					p.strike(server, unix.SIGSTOP)
					p.reign(3)
				} else {
					bad := dial(t, p.addr())
					bad.send(how + "\n")
					bad.ended()
					p.logged(`giving slot \d+ up: 3 servers have died while they worked on its byte 0$`)
				}
				c.echoed("after " + how)
			})
		}
	})
}

// TestRescueBusy: a server that works as hard as it can, and for longer than the patience, is not hung.
func TestRescueBusy(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		long(t)
		p := s.old(t, "", args("-patience", "10s"))
		finish := flood(t, p.addr(), 30, true)
		time.Sleep(15 * time.Second)
		finish()
		if n := len(p.reigns()); n != 1 {
			t.Errorf("servers: %d", n)
		}
	})
}

// TestRescueMemory: a server that has no memory left dies of it, and is rescued.
func TestRescueMemory(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		c := dial(t, p.addr())
		c.echoed("hello")
		_, server := p.reign(1)
		limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20} // it has more than that already: so it gets no more
		if err := unix.Prlimit(server, unix.RLIMIT_AS, &limit, nil); err != nil {
			t.Fatal(err)
		}
		eater := dial(t, p.addr())
		eater.send("EAT\n")
		p.reign(2)
		eater.expect("EAT") // the next one has no such limit
		c.echoed("still here")
		p.logged(`out of memory|cannot allocate memory`)
	})
}

// TestRescueSpare: a spare server that dies or is stopped costs nothing but a little time.
func TestRescueSpare(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", args("-patience", "3s"))
		c := dial(t, p.addr())
		c.echoed("hello")
		first := p.spare()
		if err := unix.Kill(first, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.logged(fmt.Sprintf("spare server pid %d has ended", first))
		eventually(t, "there is another spare server", func() bool { return len(group(p.pid)) == 3 })
		second := p.spare()
		if err := unix.Kill(second, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		_, server := p.reign(1)
		if err := unix.Kill(server, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.logged(fmt.Sprintf(`server pid %d hangs`, second))
		c.echoed("still here")
		// Both die: then a server must be started first.
		keeper, server := p.reign(3)
		third := p.spare()
		for _, pid := range []int{third, server} {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		c.echoed("from a new one")
		// A keeper that is stopped is no obstacle, but for newcomers.
		p.reign(4)
		if err := unix.Kill(keeper, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		(&process{t: t, pid: keeper}).stopped()
		c.echoed("without the keeper")
		newcomer := dial(t, p.addr())
		newcomer.send("patient\n")
		if err := unix.Kill(keeper, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		newcomer.expect("patient")
	})
}

// TestRescueIdle: very many connections that say nothing cost no memory, and are all there after rescues,
// of either kind.
func TestRescueIdle(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		crowd(t)
		n := rounds(500, 10_000)
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		n = min(n, int(limit.Cur)-500)
		p := s.old(t, "", neverHangs())
		keeper, server := p.reign(1)
		var all []*client
		for range n {
			all = append(all, dial(t, p.addr()))
		}
		eventually(t, "all are accepted", func() bool { return len((&process{t: t, pid: server}).fds()) >= n })
		if got := blocks(t, keeper); got*512 > 8*(1<<14) {
			t.Errorf("%d idle connections have %d bytes of memory", n, got*512)
		}
		_, server = p.strike(server, unix.SIGKILL)
		p.strike(keeper, unix.SIGKILL)
		p.strike(server, unix.SIGKILL)
		for _, c := range all {
			c.echoed("here")
		}
		p.logged(fmt.Sprintf("has everything: connections %d;", n))
	})
}

// TestRescueCtrlZ: all of them are stopped for longer than the patience, and go on. That is nobody's hang.
func TestRescueCtrlZ(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", args("-patience", "5s"))
		c := dial(t, p.addr())
		c.echoed("hello")
		_, server := p.reign(1)
		for range rounds(1, 5) {
			if err := unix.Kill(-p.pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			p.stopped()
			time.Sleep(6 * time.Second)
			if err := unix.Kill(-p.pid, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			c.echoed("after SIGCONT")
		}
		if _, now := p.reign(1); now != server || len(p.reigns()) != 1 {
			t.Errorf("server pid %d has become pid %d", server, now)
		}
	})
}

// TestRescueGivesUp: a line that kills each server that works on it costs its client the connection, and
// nobody else. What that client had sent before it is answered.
func TestRescueGivesUp(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		finish := flood(t, p.addr(), rounds(10, 50), true)
		for i := range rounds(2, 10) {
			bad := dial(t, p.addr())
			bad.send("before\nPANIC\nbehind\n")
			bad.expect("before")
			bad.ended()
			p.gaveUp(i + 1)
			if died := strings.Count(p.err.String(), "is dead"); died != 3*(i+1) {
				t.Errorf("servers that died of it: %d, want 3 for each connection", died)
			}
		}
		finish()
		if n := strings.Count(p.err.String(), "giving slot"); n != rounds(2, 10) {
			t.Errorf("given up: %d", n)
		}
	})
}

// TestRescueTwoBad: two clients, each of whom would kill every server.
func TestRescueTwoBad(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		good := dial(t, p.addr())
		good.echoed("hello")
		_, server := p.reign(1)
		bad := []*client{dial(t, p.addr()), dial(t, p.addr())}
		for _, c := range bad {
			c.echoed("hello")
		}
		if err := unix.Kill(server, unix.SIGSTOP); err != nil { // so that both are found by the next one
			t.Fatal(err)
		}
		for _, c := range bad {
			c.send("PANIC\n")
		}
		p.strike(server, unix.SIGKILL)
		for _, c := range bad {
			c.ended()
		}
		good.echoed("still here")
	})
}

// TestRescueInnocents: clients whose lines take long, beside others that kill one server after the other:
// nobody is cut off for what another one has done.
func TestRescueInnocents(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		var stop atomic.Bool
		var all sync.WaitGroup
		for range 3 {
			c := dial(t, p.addr())
			all.Go(func() {
				in := bufio.NewReader(c.stream)
				for !stop.Load() {
					if _, err := io.WriteString(c.stream, "SLOW\n"); err != nil {
						t.Error(err)
						return
					}
					if line, err := in.ReadString('\n'); line != "SLOW\n" {
						t.Errorf("an innocent client: %q and %v", line, err)
						return
					}
				}
			})
		}
		var bad []*client
		for range rounds(6, 20) { // a new one comes as the last one strikes
			died := len(p.reigns())
			c := dial(t, p.addr())
			c.send("PANIC\n")
			bad = append(bad, c)
			p.reign(died + 1)
		}
		for _, c := range bad {
			c.ended()
		}
		stop.Store(true)
		all.Wait()
	})
}

// TestRescueChurn: more connections end at once than there is room for messages about it in the keeper's
// queue, while it has more to say than there is room for in the server's. (There is room for some 280, by
// net.core.wmem_default.)
func TestRescueChurn(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		_, server := p.reign(1)
		const crowd = 400
		var old, next []*client
		for range rounds(2, 5) {
			for range crowd {
				old = append(old, dial(t, p.addr()))
			}
			for _, c := range old {
				c.echoed("here")
			}
			if err := unix.Kill(server, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			(&process{t: t, pid: server}).stopped()
			for range crowd {
				next = append(next, dial(t, p.addr()))
			}
			for _, c := range old {
				c.Close()
			}
			if err := unix.Kill(server, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			for _, c := range next {
				c.echoed("here too")
				c.Close()
			}
			old, next = nil, nil
		}
		if n := len(p.reigns()); n != 1 {
			t.Errorf("servers: %d", n)
		}
	})
}

// TestRescueDescriptors: with too few descriptors nothing begins. With few, clients wait for a slot, and
// the log says so.
func TestRescueDescriptors(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		s.start(t, limited(79)).fails("79 descriptors .*at least 80: raise ulimit -n")
		p := s.old(t, "", neverHangs(), limited(82))
		var all []*client
		for range 82 - 64 {
			all = append(all, dial(t, p.addr()))
		}
		last := len(all) - 1
		for _, c := range all[:last] {
			c.echoed("hello")
		}
		p.logged(`every slot has a connection \(more of them: ulimit -n\): clients wait`)
		all[last].send("patient\n")
		all[0].finish("")
		all[last].expect("patient")
		_, server := p.reign(1)
		p.strike(server, unix.SIGKILL)
		for _, c := range all[1:] {
			c.echoed("still here")
		}
	})
}

// TestRescueOnTheirWay: while too many descriptors of its user are on their way, a living process cannot
// send any (ETOOMANYREFS; root can). Until it can, the server starts one keeper after the other, and the
// keeper one server, but not at full speed. Nobody goes on with a part.
func TestRescueOnTheirWay(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		user, another := os.Geteuid(), func(*exec.Cmd) {}
		if user == 0 {
			user, another = nobody, as(nobody)
		}
		p := s.old(t, "", neverHangs(), limited(82), another)
		c := dial(t, p.addr())
		c.echoed("hello")
		keeper, server := p.reign(1)

		arrive := onTheirWay(t, user, 83)
		if err := unix.Kill(keeper, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a keeper cannot be given anything", func() bool { return matches("start a keeper: .*too many references", p.err.String()) })
		arrive()
		if _, now := p.reign(2); now != server {
			t.Errorf("server pid %d has become pid %d", server, now)
		}
		visits(t, p.addr())
		c.echoed("still here")

		arrive = onTheirWay(t, user, 83)
		began := time.Now()
		if err := unix.Kill(server, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "many servers die", func() bool { return strings.Count(p.err.String(), " is dead: sendmsg: too many references") >= 20 })
		if took := time.Since(began); took < 500*time.Millisecond {
			t.Errorf("20 servers in %v", took)
		}
		arrive()
		p.reign(3)
		visits(t, p.addr())
		c.echoed("still here")
	})
}

// onTheirWay has a user's descriptors sent and not received, until arrive is called.
func onTheirWay(t *testing.T, user, many int) (arrive func()) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	arrive = sync.OnceFunc(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	t.Cleanup(arrive)
	// They are the real user's, so that is changed, of this thread, and back again. (The thread cannot just
	// end: processes that it has started would be ended with it, PR_SET_PDEATHSIG of prctl(2).)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become := func(user int) {
		if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(user), ^uintptr(0), ^uintptr(0)); err != 0 {
			panic(err)
		}
	}
	become(user)
	err = unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(slices.Repeat([]int{2}, many)...), nil, 0)
	become(os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	return arrive
}

// TestRescueYoungKeeper: a keeper that is told to end while it is still being given everything ends, and the
// server with it. Here this test is the server, and says nothing; and another process dies in its place.
func TestRescueYoungKeeper(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		server := start(t, "/bin/sleep", args("3600"))
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		memory, err1 := unix.MemfdCreate("rescue", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		err2 := unix.Ftruncate(memory, 1<<14*(8+64<<10))
		_, err3 := unix.FcntlInt(uintptr(memory), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
		pidfd, err4 := unix.PidfdOpen(server.pid, 0)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		p := s.start(t, args("-role", "keeper"), func(cmd *exec.Cmd) {
			for _, fd := range []int{pair[1], memory, pidfd} {
				f := os.NewFile(uintptr(fd), "inherited")
				t.Cleanup(func() { f.Close() })
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
			cmd.ExtraFiles = slices.Insert(cmd.ExtraFiles, 2, cmd.ExtraFiles[1]) // in the listener's place: it does not come to that
		})
		eventually(t, "it has the memory, and waits for connections", func() bool {
			maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
			return err == nil && strings.Contains(string(maps), "memfd:rescue") || closed(p.done)
		})
		p.signal(unix.SIGTERM)
		if got := p.wait(); !got.Exited() {
			t.Errorf("the keeper: %v\n%s", p.cmd.ProcessState, p.err)
		}
		server.died()
	})
}

// TestRescueOptions: the listener has its options before anybody can connect to it.
func TestRescueOptions(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		strace, err := exec.LookPath("strace")
		if err != nil {
			t.Skip(err)
		}
		path, err := filepath.Abs(filepath.Join(bin, s.name))
		if err != nil {
			t.Fatal(err)
		}
		trace := filepath.Join(folder(t), "trace")
		tracer := start(t, strace, args("-f", "-o", trace, "-e", "trace=setsockopt,listen", "-e", "inject=listen:signal=KILL",
			path, "-addr", "127.0.0.1:0"))
		tracer.wait()
		calls, _ := os.ReadFile(trace)
		before, _, listens := strings.Cut(string(calls), "listen(")
		if !listens {
			t.Skipf("strace: %s", tracer.err)
		}
		for _, option := range []string{"TCP_NODELAY", "SO_KEEPALIVE", "SO_OOBINLINE"} {
			if !strings.Contains(before, option+", [1]") {
				t.Errorf("%s comes later:\n%s", option, calls)
			}
		}
	})
}

// TestRescuePatience: with no patience at all, no server would live. (One that is started with the least may hang on a
// slow machine: then there is another.)
func TestRescuePatience(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", args("-patience", "1ns"))
		eventually(t, "a server is started with the least patience there is", func() bool {
			return slices.ContainsFunc(group(p.pid), func(pid int) bool {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended
				return strings.Contains(string(cmdline), "-role\x00server\x00") && strings.Contains(string(cmdline), "-patience\x00100ms\x00")
			})
		})
	})
}

// TestRescueRole: a role is not for the user to choose.
func TestRescueRole(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		for _, role := range []string{"server", "keeper", "other"} {
			s.start(t, args("-role", role)).fails("-role is for the program itself to use")
		}
	})
}

// TestRescueUnread: a log that nobody reads holds no rescue up.
func TestRescueUnread(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		r, w := os.NewFile(uintptr(pipe[0]), "log"), os.NewFile(uintptr(pipe[1]), "stderr")
		defer r.Close()
		defer w.Close()
		p := s.start(t, args("-addr", "127.0.0.1:0"), neverHangs(), func(cmd *exec.Cmd) { cmd.Stderr = w })
		addr, in := "", bufio.NewScanner(r)
		for addr == "" && in.Scan() {
			_, addr, _ = strings.Cut(in.Text(), "listening on ")
		}
		c, before := dial(t, addr), group(p.pid)
		c.echoed("hello")
		for { // what is in the way of a line is in the way of a byte
			ready := []unix.PollFd{{Fd: int32(pipe[1]), Events: unix.POLLOUT}}
			if n, err := unix.Poll(ready, 0); n == 0 && err == nil {
				break
			}
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			for _, pid := range before {
				if pid != p.pid {
					_ = unix.Kill(pid, unix.SIGKILL) // the server and the spare one
				}
			}
			c.echoed("still here")
			before = group(p.pid)
		}
	})
}

// TestRescueLeaks: over many rescues and many clients, no process has more descriptors than before, no
// page of the memory stays, and there are as many processes.
func TestRescueLeaks(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs())
		keeper, server := p.reign(1)
		state := func() string {
			fds := func(pid int) int { return len((&process{t: t, pid: pid}).fds()) }
			return fmt.Sprintf("the keeper has %d descriptors, the server %d; there are %d processes, and %d blocks of memory",
				fds(keeper), fds(server), len(group(p.pid)), blocks(t, keeper))
		}
		round := func(n int) {
			t.Helper()
			var clients []*client
			for range 10 {
				c := dial(t, p.addr())
				c.echoed(strings.Repeat("x", 40_000))
				clients = append(clients, c)
			}
			bad := dial(t, p.addr())
			bad.send("PANIC\n")
			bad.ended()
			_, server = p.gaveUp(n)
			for i, c := range clients {
				if i == 5 {
					_, server = p.strike(server, unix.SIGKILL)
				}
				c.finish("")
			}
			keeper, server = p.strike(keeper, unix.SIGKILL)
		}
		round(1) // which opens what is opened once
		before := ""
		eventually(t, "it comes to rest", func() bool {
			last := before
			time.Sleep(50 * time.Millisecond)
			before = state()
			return last == before && len(group(p.pid)) == 3
		})
		for n := range rounds(3, 40) { // five rescues each
			round(2 + n)
		}
		after := ""
		eventually(t, "what there was before: "+before, func() bool {
			if now := state(); now != after {
				after = now
				t.Log(after)
			}
			return after == before
		})
	})
}

// blocks is how much of the shared memory there is: what is not a hole, in 512 bytes.
func blocks(t *testing.T, pid int) int64 {
	t.Helper()
	for fd, what := range (&process{t: t, pid: pid}).fds() {
		if strings.Contains(what, "memfd:rescue") {
			info, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
			if err != nil {
				t.Fatal(err)
			}
			return info.Sys().(*syscall.Stat_t).Blocks
		}
	}
	t.Fatalf("pid %d has no shared memory", pid)
	return 0
}

// TestRescueLiars: a server that lies to its keeper is killed, and the next one goes on. The lie is told by
// this test: it stops the server, and fetches that one's end of the control socket.
func TestRescueLiars(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		for _, lie := range lies {
			t.Run(lie, func(t *testing.T) {
				t.Parallel()
				p := s.old(t, "", neverHangs())
				c := dial(t, p.addr())
				c.echoed("hello")
				keeper, server := p.reign(1)
				control := fetched(t, server, 3)
				memory := fetched(t, server, 4)
				if err := unix.Kill(server, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				(&process{t: t, pid: server}).stopped()
				var err error
				switch lie {
				case "with descriptors":
					err = unix.Sendmsg(control, []byte(`{"type":"done"}`), unix.UnixRights(0, 1, 2), nil, 0)
				case "":
					err = unix.Sendmsg(control, nil, unix.UnixRights(0), nil, 0)
				case "hangs up":
					err = unix.Shutdown(control, unix.SHUT_RDWR)
				case "words": // every bit of every word, the heartbeat's too
					_, err = unix.Pwrite(memory, bytes.Repeat([]byte{0xff}, 8*(1<<14)), 0)
					err = errors.Join(err, unix.Kill(server, unix.SIGKILL))
				case "truncate": // it cannot be made shorter, so nobody gets a SIGBUS
					for _, size := range []int64{0, 4096, 1 << 40} {
						if err := unix.Ftruncate(memory, size); !errors.Is(err, unix.EPERM) {
							t.Errorf("ftruncate to %d: %v", size, err)
						}
					}
					err = unix.Kill(server, unix.SIGKILL)
				default:
					err = unix.Sendmsg(control, []byte(lie), nil, nil, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
				if now, next := p.reign(2); now != keeper || next == server {
					t.Errorf("keeper and server %d, %d are now %d, %d", keeper, server, now, next)
				}
				words := make([]byte, 8*(1<<14))
				if n, err := unix.Pread(memory, words, 0); n < len(words) || err != nil {
					t.Fatal(n, err)
				}
				for slot := 2; slot < 1<<14; slot++ { // or the next one would die of it
					if words[8*slot]&1 != 0 {
						t.Fatalf("slot %d is still busy", slot)
					}
				}
				switch lie { // it may harm the clients that it has, and nobody else
				case `{"type":"done","slots":[1,1]}`, "words":
					c.ended()
				default:
					c.echoed("still here")
				}
				visits(t, p.addr())
			})
		}
	})
}

var lies = []string{
	`{"type":"done","slots":[0]}`, `{"type":"done","slots":[-1]}`, `{"type":"done","slots":[32768]}`,
	`{"type":"done","slots":[9223372036854775807]}`, `{"type":"done","slots":[2]}`, `{"type":"done","slots":[1,1]}`,
	`{"type":"all"}`, `{"type":"connections","slots":[7]}`, `{"type":"done","slots":"x"}`, `{`, ``,
	"with descriptors", "hangs up", "words", "truncate",
}

// fetched is a duplicate of another process's descriptor.
func fetched(t *testing.T, pid, number int) int {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, number, 0)
	if mode := yamaMode(t); err != nil && mode > 1 {
		t.Skipf("pidfd_getfd: %v: Yama's ptrace_scope is %d", err, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestRescueKinds: connections by IPv6, with urgent data, and with Multipath TCP at the client's end,
// are rescued like any other.
func TestRescueKinds(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		p := s.old(t, "", neverHangs(), args("-addr", "[::1]:0"))
		var d net.Dialer
		d.SetMultipathTCP(true)
		mptcp, err := d.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer mptcp.Close()
		c := dial(t, p.addr())
		raw, err := c.stream.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_, server := p.reign(1)
		for i := range 5 {
			c.send("ur")
			if err := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("g"), unix.MSG_OOB, nil) }); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, server = p.strike(server, unix.SIGKILL)
			c.send("ent\n")
			c.expect("urgent")
			line := fmt.Sprintf("multipath %d\n", i)
			got := make([]byte, len(line))
			if _, err := io.WriteString(mptcp, line); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(mptcp, got); err != nil || string(got) != line {
				t.Fatalf("got %q and %v, want %q", got, err, line)
			}
		}
		c.finish("")
	})
}

// TestRescueDemo runs the demonstration.
func TestRescueDemo(t *testing.T) {
	each(t, rescues, func(t *testing.T, s step) {
		long(t)
		s.start(t, args("-demo")).exits(0)
	})
}
