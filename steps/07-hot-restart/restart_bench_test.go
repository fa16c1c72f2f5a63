//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How fast a takeover is, and what clients notice of it: real processes, which are this test's program
// once more. What to compare it with, the floor, is measured in the same run: on a busy machine both
// grow.
//
//	go test -run '^$' -bench . -benchtime 9x ./steps/07-hot-restart

const asRole = "STEAL_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(asRole) {
	case "server":
		main()
	case "floor":
		if err := takeBare(3); err != nil { // exec.Cmd.ExtraFiles begin at 3
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// BenchmarkIdle: so many connections, all silent. The floor is the bare passing of as many sockets to
// another process, 253 a message, each registered with epoll on arrival and closed on departure, with
// an answer to every message.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := newServers(b)
			clients := s.dialMany(n)
			time.Sleep(1100 * time.Millisecond) // until none has just talked
			var totals, stood, floors series
			for range b.N {
				said := s.restart()
				if said[1] != fmt.Sprint(n) {
					b.Fatalf("%s of %d connections moved", said[1], n)
				}
				totals.add(said[2])
				stood.add(said[3])
				floors = append(floors, passBare(b, clients))
			}
			for _, c := range clients {
				c.echoed(b, "still here")
			}
			totals.report(b, "total")
			stood.report(b, "stood")
			floors.report(b, "floor")
			b.ReportMetric(float64(totals.median())/float64(floors.median()), "total/floor")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkBusy: the longest time that a client waits for an answer, of those that never pause: in a
// second with a restart, and in one without.
func BenchmarkBusy(b *testing.B) {
	for _, c := range []struct{ busy, idle, longest int }{{1, 5000, 100}, {200, 0, 64 << 10}} {
		b.Run(fmt.Sprintf("%d among %d, lines to %d", c.busy, c.idle, c.longest), func(b *testing.B) {
			s := newServers(b)
			s.dialMany(c.idle)
			time.Sleep(1100 * time.Millisecond)
			p := s.talk(c.busy, c.longest)
			time.Sleep(200 * time.Millisecond)
			var calm, restarted, took series
			for range b.N {
				p.longest()
				begin := time.Now()
				took.add(s.restart()[2])
				time.Sleep(time.Second - time.Since(begin))
				restarted = append(restarted, p.longest())
				time.Sleep(time.Second)
				calm = append(calm, p.longest())
			}
			p.stop()
			took.report(b, "total")
			calm.report(b, "calm")
			restarted.report(b, "restart")
			b.ReportMetric(float64(restarted.median())/float64(calm.median()), "restart/calm")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkEcho: a line of 1 KiB there and back, by 8 clients at once, over connections that were
// accepted, and over the same after they have been taken over.
func BenchmarkEcho(b *testing.B) {
	s := newServers(b)
	clients := s.dialMany(8)
	line := append(bytes.Repeat([]byte("x"), 1023), '\n')
	run := func(b *testing.B) {
		b.SetBytes(int64(len(line)))
		var all sync.WaitGroup
		for _, c := range clients {
			all.Go(func() {
				got := make([]byte, len(line))
				for range (b.N + len(clients) - 1) / len(clients) {
					c.Write(line)
					if _, err := io.ReadFull(c.in, got); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	b.Run("accepted", run)
	s.restart()
	b.Run("adopted", run)
}

// series are durations, of which the median counts.
type series []time.Duration

func (s *series) add(text string) {
	d, _ := time.ParseDuration(text)
	*s = append(*s, d)
}

func (s series) median() time.Duration {
	slices.Sort(s)
	return s[len(s)/2]
}

func (s series) report(b *testing.B, name string) {
	b.ReportMetric(float64(s.median().Microseconds())/1000, name+"-ms")
}

// servers is one server after the other.
type servers struct {
	b          *testing.B
	path, addr string
	now        *exec.Cmd
}

func newServers(b *testing.B) *servers {
	s := &servers{b: b, path: filepath.Join(b.TempDir(), "control")}
	b.Cleanup(func() {
		s.now.Process.Kill()
		s.now.Wait()
	})
	s.addr = s.start(`listening on (\S+)`)[1]
	return s
}

// start starts a server, and waits for a line of its log.
func (s *servers) start(pattern string) (found []string) {
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-control", s.path)
	if batch := os.Getenv("STEAL_BATCH"); batch != "" {
		cmd.Args = append(cmd.Args, "-batch", batch)
	}
	cmd.Env = append(os.Environ(), asRole+"=server")
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.b.Fatal(err)
	}
	before := s.now
	s.now = cmd
	said := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said += lines.Text() + "\n"
		if match := regexp.MustCompile(pattern).FindStringSubmatch(lines.Text()); match != nil {
			found = match
		}
		if strings.Contains(lines.Text(), "listening on") {
			go io.Copy(io.Discard, out)
			break
		}
	}
	if found == nil {
		s.b.Fatalf("no %q in %s", pattern, said)
	}
	if before != nil {
		before.Wait()
	}
	return found
}

// restart returns how many connections have moved, in what time, and for how long one stood still.
func (s *servers) restart() []string {
	return s.start(`connections moved: (\d+), in (\S+); none stood still for longer than (\S+)`)
}

type benchClient struct {
	*net.TCPConn
	in *bufio.Reader
}

func (s *servers) dial() *benchClient {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() { c.Close() })
	return &benchClient{c.(*net.TCPConn), bufio.NewReaderSize(c, 1<<10)}
}

func (s *servers) dialMany(n int) (all []*benchClient) {
	for range n {
		c := s.dial()
		c.echoed(s.b, "hello")
		all = append(all, c)
	}
	return all
}

func (c *benchClient) echoed(b *testing.B, line string) {
	io.WriteString(c, line+"\n")
	if got, err := c.in.ReadString('\n'); got != line+"\n" {
		b.Fatalf("got %q, %v", got, err)
	}
}

// talkers are clients that send a line, wait for the answer, and go on with the next.
type talkers struct {
	wait    atomic.Int64 // the longest, in nanoseconds
	over    atomic.Bool
	clients sync.WaitGroup
}

func (s *servers) talk(n, longest int) *talkers {
	p := &talkers{}
	for i := range n {
		c, random := s.dial(), rand.New(rand.NewSource(int64(i)))
		p.clients.Go(func() {
			line, got := bytes.Repeat([]byte("x"), longest), make([]byte, longest)
			for !p.over.Load() {
				size := 1 + random.Intn(longest)
				line[size-1] = '\n'
				begin := time.Now()
				c.Write(line[:size])
				if _, err := io.ReadFull(c.in, got[:size]); err != nil || !bytes.Equal(got[:size], line[:size]) {
					s.b.Errorf("another answer, %v", err)
					return
				}
				line[size-1] = 'x'
				took := int64(time.Since(begin))
				for is := p.wait.Load(); is < took && !p.wait.CompareAndSwap(is, took); is = p.wait.Load() {
				}
			}
		})
	}
	return p
}

// longest returns the longest wait since it was last called.
func (p *talkers) longest() time.Duration { return time.Duration(p.wait.Swap(0)) }

func (p *talkers) stop() {
	p.over.Store(true)
	p.clients.Wait()
}

// passBare passes duplicates of all sockets to a process that does nothing with them, and returns how
// long that took.
func passBare(b *testing.B, clients []*benchClient) (took time.Duration) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "floor")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asRole+"=floor")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	theirs.Close()
	answer := make([]byte, 1)
	unix.Read(pair[0], answer) // it is ready
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(poll)
	for some := range slices.Chunk(clients, scmMaxFD) {
		var fds []int
		for _, c := range some {
			borrow(c, func(fd int) error {
				fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
				fds = append(fds, fd)
				return err
			})
			if err := watch(poll, fds[len(fds)-1]); err != nil {
				b.Fatal(err)
			}
		}
		begin := time.Now()
		if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fds...), nil, 0); err != nil {
			b.Fatal(err)
		}
		for _, fd := range fds {
			unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, fd, nil)
			unix.Close(fd)
		}
		if n, err := unix.Read(pair[0], answer); n != 1 {
			b.Fatal(err)
		}
		took += time.Since(begin)
	}
	unix.Close(pair[0])
	if err := cmd.Wait(); err != nil { // without us it ends
		b.Fatal(err)
	}
	return took
}

// watch registers a descriptor as Go's poller does.
func watch(poll, fd int) error {
	return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)})
}

// takeBare is the other process.
func takeBare(socket int) error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	payload, control := []byte("x"), make([]byte, unix.CmsgSpace(4*scmMaxFD))
	for {
		if _, err := unix.Write(socket, payload); err != nil {
			return err
		}
		n, controlLen, _, _, err := unix.Recvmsg(socket, payload, control, unix.MSG_CMSG_CLOEXEC)
		if n == 0 || err != nil {
			return err
		}
		fds, err := parseControl(control[:controlLen])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if err := watch(poll, fd); err != nil {
				return err
			}
		}
	}
}
