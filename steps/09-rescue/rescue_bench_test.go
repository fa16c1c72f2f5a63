//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// What a client notices of a server's death, and what a keeper costs: real processes, which are this
// test's program once more. What to compare it with is measured in the same run.
//
//	go test -run '^$' -bench . -benchtime 20x ./steps/09-rescue

const asStep = "STEAL_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(asStep) {
	case "":
		os.Exit(m.Run())
	case "plain":
		plainServer()
	default:
		main()
	}
}

// group is a keeper, and what it has started.
type group struct {
	b             *testing.B
	addr          string
	server, spare int // pids
	ready         map[int]bool
	lines         *bufio.Scanner
}

func startGroup(b *testing.B) *group {
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-patience", "1h")
	cmd.Env = append(os.Environ(), asStep+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	g := &group{b: b, lines: bufio.NewScanner(out), ready: map[int]bool{}}
	g.settle()
	return g
}

// settle waits until another server serves, and another spare one is ready.
func (g *group) settle() {
	g.b.Helper()
	before, spare := g.server, 0
	for g.server == before || spare == 0 {
		if !g.lines.Scan() {
			g.b.Fatal("the keeper has ended")
		}
		var pid int
		_, line, _ := strings.Cut(g.lines.Text(), "[")
		if n, _ := fmt.Sscanf(line, "%d]: server pid %d has everything: connections %d; listening on %s", new(int), &pid, new(int), &g.addr); n == 4 {
			g.server = pid
		} else if strings.HasSuffix(line, "]: ready") {
			fmt.Sscanf(line, "%d", &pid)
			g.ready[pid] = true
		}
		delete(g.ready, g.server)
		delete(g.ready, g.spare) // the one before, which has been killed or serves
		for spare = range g.ready {
		}
	}
	g.spare = spare
}

// BenchmarkRescue: ten clients, or all, have sent a line that nobody has read yet. From the server's kill,
// how long does it take until a client has the answer? The floors: a server that was only stopped goes
// on; a process of this size is started; a descriptor goes to another process and comes back.
func BenchmarkRescue(b *testing.B) {
	for _, c := range []struct{ n, wait int }{{10, 10}, {1000, 10}, {1000, 1000}, {8000, 10}, {8000, 8000}} {
		for _, how := range []string{"spare", "no spare", "only stopped"} {
			b.Run(fmt.Sprintf("%d of %d wait, %s", c.wait, c.n, how), func(b *testing.B) {
				g := startGroup(b)
				clients := g.dialMany(c.n)
				var gaps series
				for range b.N {
					unix.Kill(g.server, unix.SIGSTOP)
					time.Sleep(pause + 20*time.Millisecond) // until it has, and the spare one is older than pause: only a measurement
					clients.send(c.n / c.wait)
					begin := time.Now()
					if how == "no spare" {
						unix.Kill(g.spare, unix.SIGKILL)
					}
					if how == "only stopped" {
						unix.Kill(g.server, unix.SIGCONT)
					} else {
						unix.Kill(g.server, unix.SIGKILL)
					}
					gaps = append(gaps, clients.answers(begin, c.wait)...)
					if how != "only stopped" {
						g.settle()
					}
				}
				gaps.report(b)
			})
		}
	}
	b.Run("process start", func(b *testing.B) {
		var all series
		for range b.N {
			begin := time.Now()
			cmd := exec.Command("/proc/self/exe", "one argument too many") // it says so, and exits
			cmd.Env = append(os.Environ(), asStep+"=1")
			cmd.Run()
			all = append(all, time.Since(begin))
		}
		all.report(b)
	})
	b.Run("descriptor round trip", func(b *testing.B) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			b.Fatal(err)
		}
		here, _ := socket.New(pair[0], "here")
		there, _ := socket.New(pair[1], "there")
		defer here.Close()
		go func() {
			defer there.Close()
			for {
				m, fds, err := receive(there)
				if err != nil || send(there, m, fds...) != nil {
					return
				}
				closeFDs(fds)
			}
		}()
		var all series
		for range b.N {
			begin := time.Now()
			send(here, message{Type: "connections", Slots: []int{1}}, 0)
			_, fds, err := receive(here)
			all = append(all, time.Since(begin))
			if err != nil {
				b.Fatal(err)
			}
			closeFDs(fds)
		}
		all.report(b)
	})
}

// BenchmarkEcho: 8 clients send lines of a size and read them back, first one at a time, then all that fit.
// The same clients, once with this step's server and once with step 01's way of echoing.
func BenchmarkEcho(b *testing.B) {
	g := startGroup(b)
	plain := startPlain(b)
	for _, c := range []struct{ size, ahead int }{{64, 1}, {64, 100}, {1 << 10, 100}, {16 << 10, 10}} {
		for _, to := range []struct{ name, addr string }{{"rescue", g.addr}, {"plain", plain}} {
			b.Run(fmt.Sprintf("%d bytes, %d ahead, %s", c.size, c.ahead, to.name), func(b *testing.B) {
				b.SetBytes(int64(c.size))
				var all sync.WaitGroup
				for range 8 {
					conn, err := net.Dial("tcp", to.addr)
					if err != nil {
						b.Fatal(err)
					}
					all.Go(func() {
						defer conn.Close()
						line := append(bytes.Repeat([]byte("x"), c.size-1), '\n')
						lines, got := bytes.Repeat(line, c.ahead), make([]byte, c.size*c.ahead)
						for range b.N/8/c.ahead + 1 {
							go conn.Write(lines)
							if _, err := io.ReadFull(conn, got); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
			})
		}
	}
}

// startPlain is step 01's server, which needs no other process: this test's.
func startPlain(b *testing.B) (addr string) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asStep+"=plain")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	fmt.Fscanln(out, &addr)
	return addr
}

func plainServer() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer c.Close()
			in := bufio.NewReaderSize(c, 16<<10)
			for {
				line, err := in.ReadSlice('\n')
				if _, failed := c.Write(line); failed != nil || err != nil && err != bufio.ErrBufferFull {
					return
				}
			}
		}()
	}
}

// BenchmarkNewcomer: a client connects, says a line, and leaves: with the keeper, and without.
func BenchmarkNewcomer(b *testing.B) {
	for _, to := range []struct{ name, addr string }{{"rescue", startGroup(b).addr}, {"plain", startPlain(b)}} {
		b.Run(to.name, func(b *testing.B) {
			buffer := make([]byte, 16)
			for range b.N {
				c, err := net.Dial("tcp", to.addr)
				if err != nil {
					b.Fatal(err)
				}
				c.(*net.TCPConn).SetLinger(0) // ports are few
				c.Write([]byte("hello\n"))
				c.Read(buffer)
				c.Close()
			}
		})
	}
}

// crowd are clients' sockets, and an epoll set of them.
type crowd struct {
	b    *testing.B
	poll int
	fds  []int
}

func (g *group) dialMany(n int) *crowd {
	c := &crowd{b: g.b}
	var err error
	if c.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		g.b.Fatal(err)
	}
	g.b.Cleanup(func() {
		closeFDs(c.fds)
		unix.Close(c.poll)
	})
	to := netip.MustParseAddrPort(g.addr)
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			c.fds = append(c.fds, fd)
			err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		}
		if err == nil {
			err = unix.EpollCtl(c.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
		}
		if err != nil {
			g.b.Fatal(err)
		}
	}
	c.send(1)
	c.answers(time.Now(), n)
	return c
}

// send sends a line from each nth client.
func (c *crowd) send(nth int) {
	for i := 0; i < len(c.fds); i += nth {
		unix.Write(c.fds[i], []byte("line\n"))
	}
}

// answers returns when each of so many clients had an answer.
func (c *crowd) answers(begin time.Time, count int) (gaps series) {
	events, buffer := make([]unix.EpollEvent, 64), make([]byte, 16)
	for len(gaps) < count {
		n, _ := unix.EpollWait(c.poll, events, -1)
		now := time.Since(begin)
		for _, e := range events[:max(n, 0)] {
			if n, err := unix.Read(int(e.Fd), buffer); string(buffer[:max(n, 0)]) != "line\n" {
				c.b.Fatalf("a client reads %d bytes: %v", n, err)
			}
			gaps = append(gaps, now)
		}
	}
	return gaps
}

type series []time.Duration

func (s series) report(b *testing.B) {
	slices.Sort(s)
	for name, at := range map[string]int{"p50-ms": len(s) / 2, "p99-ms": len(s) * 99 / 100, "max-ms": len(s) - 1} {
		b.ReportMetric(float64(s[at].Microseconds())/1000, name)
	}
	b.ReportMetric(0, "ns/op")
}
