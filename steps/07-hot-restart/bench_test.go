//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTakeover measures how long a takeover takes with so many idle connections, and how long
// one of them stands still at most. In the same run it measures the floor: the bare passing of as
// many sockets to another process, 253 a message, each registered with epoll on arrival and
// closed on departure, with an answer to every message. Compare the two: on a busy machine both
// grow.
func BenchmarkTakeover(b *testing.B) {
	for _, size := range []struct{ n, batch int }{{100, maxSockets}, {1000, maxSockets}, {10_000, maxSockets}, {10_000, 32}} {
		n, batch := size.n, strconv.Itoa(size.batch)
		b.Run(fmt.Sprintf("N=%d/batch=%s", n, batch), func(b *testing.B) {
			if affordable(b, n) < n {
				b.Skipf("RLIMIT_NOFILE allows fewer than %d connections", n)
			}
			path := meetingPlace(b)
			server := startServer(b, path, "-batch", batch)
			clients := make([]*client, n)
			for i := range clients {
				clients[i] = dial(b, server.addr())
				clients[i].echoed("hello")
			}
			var totals, stalls, ends, floors []time.Duration
			for range b.N {
				next := startServer(b, path, "-batch", batch)
				said := next.logged(`connections moved: (\d+), in (\S+); none stood still for longer than (\S+)$`)
				if said[1] != strconv.Itoa(n) {
					b.Fatalf("%s of %d connections moved", said[1], n)
				}
				totals, stalls = append(totals, duration(b, said[2])), append(stalls, duration(b, said[3]))
				begin := time.Now()
				server.status()
				ends = append(ends, time.Since(begin))
				server = next
				floors = append(floors, passBare(b, clients))
			}
			for _, c := range clients {
				c.echoed("still here")
			}
			ms := func(name string, all []time.Duration) time.Duration {
				slices.Sort(all)
				median := all[len(all)/2]
				b.ReportMetric(float64(median.Microseconds())/1000, name+"-ms")
				return median
			}
			total, floor := ms("total", totals), ms("floor", floors)
			ms("longest-stall", stalls)
			ms("old-ends", ends)
			b.ReportMetric(float64(total.Nanoseconds())/1000/float64(n), "µs/conn")
			b.ReportMetric(float64(total)/float64(floor), "total/floor")
			b.ReportMetric(0, "ns/op") // an operation is a restart with the start of a process
		})
	}
}

// BenchmarkTakeoverBusy measures the longest time that each of 200 clients waits for an answer, of
// those that send one line after the other: while the server is restarted, and for as long before
// that, while it is not.
func BenchmarkTakeoverBusy(b *testing.B) {
	path := meetingPlace(b)
	server := startServer(b, path)
	const clients = 200
	pings := newPings(b, server.addr(), clients)
	var calm, restarted []time.Duration
	for range b.N {
		begin := time.Now()
		next := startServer(b, path)
		server.status()
		server = next
		restarted = append(restarted, pings.longest()...)
		time.Sleep(time.Since(begin)) // as long as that took
		calm = append(calm, pings.longest()...)
	}
	pings.stop(b)
	for name, all := range map[string][]time.Duration{"calm": calm, "restart": restarted} {
		slices.Sort(all)
		for _, p := range []struct {
			name     string
			permille int
		}{{"p50", 500}, {"p99", 990}, {"max", 1000}} {
			b.ReportMetric(float64(all[(len(all)-1)*p.permille/1000].Microseconds())/1000, name+"-"+p.name+"-ms")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// pings are clients that send a line, wait for the answer, and go on with the next.
type pings struct {
	waits    []atomic.Int64 // the longest that each has waited, in nanoseconds
	rounds   atomic.Int64
	stopping atomic.Bool
	clients  sync.WaitGroup
}

func newPings(b *testing.B, addr string, n int) *pings {
	b.Helper()
	p := &pings{waits: make([]atomic.Int64, n)}
	for i := range n {
		c := dial(b, addr)
		p.clients.Go(func() {
			for !p.stopping.Load() {
				begin := time.Now()
				if _, err := c.Write([]byte("ping\n")); err != nil {
					b.Error(err)
					return
				}
				if line, err := c.in.ReadSlice('\n'); err != nil || string(line) != "ping\n" {
					b.Errorf("got %q, %v", line, err)
					return
				}
				p.rounds.Add(1)
				p.waits[i].Store(max(p.waits[i].Load(), int64(time.Since(begin))))
			}
		})
	}
	return p
}

// longest returns the longest waits since it was last called.
func (p *pings) longest() (waits []time.Duration) {
	for i := range p.waits {
		waits = append(waits, time.Duration(p.waits[i].Swap(0)))
	}
	return waits
}

func (p *pings) stop(b *testing.B) {
	p.stopping.Store(true)
	p.clients.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// BenchmarkEcho measures the echo of a connection that was accepted, and of the same after it has
// been taken over: an operation is a line of 1 KiB there and back, by 8 clients at once.
func BenchmarkEcho(b *testing.B) {
	path := meetingPlace(b)
	server := startServer(b, path)
	clients := make([]*client, 8)
	for i := range clients {
		clients[i] = dial(b, server.addr())
		clients[i].echoed("hello")
	}
	line := append(bytes.Repeat([]byte("x"), 1023), '\n')
	run := func(b *testing.B) {
		var all sync.WaitGroup
		b.SetBytes(int64(len(line)))
		for _, c := range clients {
			all.Go(func() {
				got := make([]byte, len(line))
				for range (b.N + len(clients) - 1) / len(clients) {
					if _, err := c.Write(line); err != nil {
						b.Error(err)
						return
					}
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
	startServer(b, path)
	server.status()
	b.Run("adopted", run)
}

func duration(t testing.TB, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// passBare passes duplicates of all sockets to a process that does nothing with them, and
// returns how long that took.
func passBare(b *testing.B, clients []*client) time.Duration {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "floor")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asRole+"=floor")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := errorOf(cmd.Start(), theirs.Close()); err != nil {
		b.Fatal(err)
	}
	answer := make([]byte, 1)
	if _, err := unix.Read(pair[0], answer); err != nil { // it is ready
		b.Fatal(err)
	}
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(poll) // empty again
	var took time.Duration
	for some := range slices.Chunk(clients, maxFDs) {
		fds := polledDuplicates(b, poll, some)
		begin := time.Now()
		if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fds...), nil, 0); err != nil {
			b.Fatal(err)
		}
		for _, fd := range fds {
			// What is in flight, or in another process, epoll would go on watching.
			if err := errorOf(unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, fd, nil), unix.Close(fd)); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := unix.Read(pair[0], answer); err != nil {
			b.Fatal(err)
		}
		took += time.Since(begin)
	}
	if err := errorOf(unix.Close(pair[0]), cmd.Wait()); err != nil { // without us it ends
		b.Fatal(err)
	}
	return took
}

// polledDuplicates are descriptors of the clients' sockets, as a server has them: watched by epoll.
func polledDuplicates(b *testing.B, poll int, clients []*client) (fds []int) {
	b.Helper()
	for _, c := range clients {
		err := borrow(c, func(fd int) error {
			copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			fds = append(fds, copied)
			return err
		})
		if err := errorOf(err, watch(poll, fds[len(fds)-1])); err != nil {
			b.Fatal(err)
		}
	}
	return fds
}

// watch registers a descriptor as Go's poller does.
func watch(poll, fd int) error {
	return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)})
}

func init() {
	roles["floor"] = func() {
		if err := takeBare(3); err != nil { // exec.Cmd.ExtraFiles begin at 3
			log.Fatal(err)
		}
	}
}

// takeBare is the other process.
func takeBare(socket int) error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	payload, control := []byte("x"), make([]byte, unix.CmsgSpace(4*maxFDs))
	for {
		if _, err := unix.Write(socket, payload); err != nil {
			return fmt.Errorf("answer: %w", err)
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
