//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

func init() {
	roles["take"] = func() error { // takes a connection and says so; after that it finds its old process gone
		from, err := dialControl(os.Args[1])
		if err != nil {
			return err
		}
		c, _, err := take(from)
		if err != nil {
			return err
		}
		fmt.Fprintln(c, "taken")
		io.Copy(io.Discard, os.Stdin)
		_, _, err = openPeer(from)
		fmt.Fprintln(c, err)
		return nil
	}
}

// fetchFrom fetches a descriptor of another process.
func fetchFrom(t *testing.T, pid, number int) (int, error) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	return fetch(pid, pidfd, number)
}

// mayFetch skips a test where nobody may fetch anything, not even from a child.
func mayFetch(t *testing.T) {
	t.Helper()
	if mode := yamaMode(); mode == 3 || mode == 2 && os.Geteuid() != 0 {
		t.Skipf("Yama's ptrace_scope is %d", mode)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// A fetched descriptor is a duplicate, close-on-exec although nobody said so. The target need not do
// anything for it: it may be stopped, and it may die.
func TestFetch(t *testing.T) {
	mayFetch(t)
	child := startIdle(t, "idle", unconfined)
	if err := child.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fd, err := fetchFrom(t, child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v, want close-on-exec", flags, err)
	}
	if got := compare(child.Process.Pid, 0, fd); got != "the same there and here (kcmp)" && !strings.Contains(got, "function not implemented") {
		t.Error(got)
	}
	child.Process.Kill()
	child.Wait()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
		t.Errorf("its process is dead, and so it is: %v", err)
	}
}

func TestCompare(t *testing.T) {
	one, oneErr := os.Open("/dev/null")
	other, otherErr := os.Open("/dev/null")
	if err := errors.Join(oneErr, otherErr); err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	defer other.Close()
	numbers := [2]int{}
	for i, f := range []*os.File{one, other} {
		if err := borrow(f, func(fd int) error { numbers[i] = fd; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if got := compare(os.Getpid(), numbers[0], numbers[1]); got != "another one by now (kcmp)" && !strings.HasPrefix(got, "unknown (kcmp: function not implemented") {
		t.Errorf("the same file, opened twice: %s", got)
	}
}

// Processes that are not there, or not any more, and numbers that mean nothing.
func TestNothingThere(t *testing.T) {
	before := openFDs(t)
	self := os.Getpid()
	for _, number := range []int{1 << 20, -1} {
		_, err := fetchFrom(t, self, number)
		want := fmt.Sprintf("pidfd_getfd of pid %d, descriptor %d: bad file descriptor: it has no such descriptor", self, number)
		if !errors.Is(err, unix.EBADF) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	for _, pid := range []int{1 << 22, aThread(t)} { // PID_MAX_LIMIT
		if err := look(pid, 0); err == nil || !strings.HasSuffix(err.Error(), ": there is no such process here") {
			t.Errorf("pid %d: got %v", pid, err)
		}
	}
	child := startIdle(t, "idle", unconfined)
	pidfd, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	child.Process.Kill()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, child.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"a zombie", "reaped"} {
		want := unix.ESRCH
		if mode := yamaMode(); state == "a zombie" && (mode == 3 || mode == 2 && os.Geteuid() != 0) {
			want = unix.EPERM // a zombie is there still, and whoever may not look is not told more
		}
		_, err := fetch(child.Process.Pid, pidfd, 0)
		if old := want == unix.ESRCH && errors.Is(err, unix.EBADF); !errors.Is(err, want) && !old { // old: 5.10
			t.Errorf("%s: got %v, want %v", state, err, want)
		}
		child.Wait()
	}
	unix.Close(pidfd)
	if now := openFDs(t); now > before {
		t.Errorf("%d descriptors are open, and were %d", now, before)
	}
}

// aThread is the number of a thread of this process, and no pid.
func aThread(t *testing.T) int {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if tid, err := strconv.Atoi(thread.Name()); err == nil && tid != os.Getpid() {
			return tid
		}
	}
	t.Fatal("a Go program with one thread")
	return 0
}

// Unlike SCM_RIGHTS, pidfd_getfd(2) says that no number is free.
func TestOutOfDescriptors(t *testing.T) {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	var old unix.Rlimit
	lowest, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err := errors.Join(err, unix.Close(lowest), unix.Getrlimit(unix.RLIMIT_NOFILE, &old)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(lowest), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = fetch(os.Getpid(), pidfd, 0)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "no descriptor free (ulimit -n)") {
		t.Errorf("got %v, want EMFILE", err)
	}
}

// session is an old process's half and a connection, both in this process.
func session(t *testing.T) (g *giver, path string, server, client *net.TCPConn) {
	t.Helper()
	path = shortPath(t)
	control, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	g = &giver{control: control, timeout: patience}
	t.Cleanup(func() { control.remove(); control.Close() })
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	client.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { client.Close(); server.Close() })
	return g, path, server, client
}

// An offer that names something else than its cookie does is refused, and nothing stays open. A
// true one is taken.
func TestPulledOffer(t *testing.T) {
	g, path, server, client := session(t)
	from, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if err := g.accept(); err != nil {
		t.Fatal(err)
	}
	defer g.drop()
	taken := make(chan *socket.Conn, 1)
	go func() {
		c, _, err := take(from)
		if err != nil {
			t.Error(err)
		}
		taken <- c
	}()
	fd, cookie, err := identify(server)
	if err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	for _, lie := range []struct {
		m   message
		fds []int
		why string
	}{
		{message{content: content{FD: 1 << 20}}, nil, "bad file descriptor: it has no such descriptor"},
		{message{content: content{FD: -1}}, nil, "bad file descriptor"},
		{message{content: content{FD: 0}}, nil, "not a TCP socket"},
		{message{content: content{FD: fd}}, nil, "another socket"},
		{message{content: content{FD: fd, Cookie: cookie}}, []int{fd}, "1 descriptors"},
	} {
		lie.m.Type = "offer"
		if err := sendMessage(g.first, lie.m, lie.fds...); err != nil {
			t.Fatal(err)
		}
		g.first.SetDeadline(time.Now().Add(patience))
		if m, _, err := receiveMessage(g.first, 0); m.Type != "refused" || !strings.Contains(m.Reason, lie.why) {
			t.Errorf("%+v: got %+v, %v, want %q", lie.m, m, err, lie.why)
		}
	}
	if now := openFDs(t); now != before {
		t.Errorf("%d descriptors are open, and were %d", now, before)
	}
	if err := g.give(server, state{}); err != nil {
		t.Fatal(err)
	}
	c := <-taken
	server.Close()
	fmt.Fprint(c, "hello")
	c.Close()
	if got, err := io.ReadAll(client); string(got) != "hello" || err != nil {
		t.Errorf("the client read %q, %v", got, err)
	}
}

// A process takes a connection out of this one: with SO_PEERPIDFD, and on a kernel that does not know
// it, by the pid. There a closed control connection says that the pid may be another process's.
func TestOpenPeer(t *testing.T) {
	mayFetch(t)
	for name, adjust := range map[string]adjustment{"as it is": unconfined, "before 6.5": confined("unknown SO_PEERPIDFD")} {
		t.Run(name, func(t *testing.T) {
			if name == "before 6.5" && runtime.GOARCH == "386" {
				t.Skip("x/sys calls socketcall(2) here, whose arguments a filter cannot see")
			}
			g, path, server, client := session(t)
			cmd := command("take", path)
			adjust(cmd)
			in, err := cmd.StdinPipe()
			if err := errors.Join(err, cmd.Start()); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); cmd.Process.Kill(); cmd.Wait() }()
			for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // until it is in line
				err = g.give(server, state{})
				if err == nil || !strings.Contains(err.Error(), "waiting") || time.Now().After(end) {
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			server.Close()
			g.drop()
			in.Close()
			got, err := io.ReadAll(client)
			lines := strings.SplitN(string(got), "\n", 2)
			want := "<nil>\n"
			if name == "before 6.5" || lines[len(lines)-1] != want && peerPidfdIsMissing(t) {
				want = fmt.Sprintf("pidfd of pid %d: no such process: there is no such process here\n", os.Getpid())
			}
			if err != nil || lines[0] != "taken" || lines[1] != want {
				t.Errorf("the client read %q, %v, want taken, and after the hang-up %q", lines, err, want)
			}
		})
	}
}

func peerPidfdIsMissing(t *testing.T) bool {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFDs(fds[:])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	unix.Close(fd)
	return errors.Is(err, unix.ENOPROTOOPT)
}

// hungUp tells whether anybody has the other end: also when something is still queued, and neither
// by reading it nor by waiting.
func TestHungUp(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	here, err := socket.New(fds[0], "here")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	if hungUp(here) {
		t.Error("both ends are open")
	}
	unix.Write(fds[1], []byte("x"))
	if hungUp(here) {
		t.Error("something is queued, and both ends are open")
	}
	unix.Close(fds[1])
	if !hungUp(here) {
		t.Error("something is queued, and nobody has the other end")
	}
	here.Read(make([]byte, 1))
	if !hungUp(here) {
		t.Error("nobody has the other end")
	}
	here.Close()
	if !hungUp(here) {
		t.Error("this end is closed")
	}
}

// What look says of each kind of descriptor; the target does not notice.
func TestLook(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "a\nfile"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("hello")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_, path, server, client := session(t)
	end, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	_, cookie, err := identify(server)
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]struct {
		c    syscall.Conn
		want []string
	}{
		"file": {file, []string{fmt.Sprintf("what: %q, ", file.Name()), "offset: 5\n"}},
		"pipe": {w, []string{`what: "pipe:[`, "flags 0"}},
		"TCP":  {server, []string{`what: "socket:[`, fmt.Sprintf("socket: %v -> %v, cookie %d\n", client.RemoteAddr(), client.LocalAddr(), cookie)}},
		"unix": {end, []string{fmt.Sprintf(" -> %q, cookie ", path)}},
	} {
		var fd int
		if err := borrow(l.c, func(number int) error { fd = number; return nil }); err != nil {
			t.Fatal(err)
		}
		said := lookFrom(t, unconfined, os.Getpid(), fd, true)
		if mode := yamaMode(); strings.Contains(said, "operation not permitted") && (mode == 3 || mode == 2 && os.Geteuid() != 0) {
			t.Skipf("Yama's ptrace_scope is %d", mode)
		}
		for _, want := range append(l.want, fmt.Sprintf("pid %d, descriptor %d: here it is ", os.Getpid(), fd), "description: the same there and here (kcmp)\n") {
			if !strings.Contains(said, want) {
				t.Errorf("%s: got %q, want %q", name, said, want)
			}
		}
		if wantsOffset := name == "file"; strings.Contains(said, "offset:") != wantsOffset {
			t.Errorf("%s: got %q", name, said)
		}
	}
	unix.Prctl(unix.PR_SET_PTRACER, 0, 0, 0, 0)
	if offset, err := file.Seek(0, io.SeekCurrent); offset != 5 || err != nil {
		t.Errorf("the offset has moved to %d, %v", offset, err)
	}
}

// address writes addresses as package net does.
func TestAddress(t *testing.T) {
	for _, a := range []struct {
		sa   unix.Sockaddr
		err  error
		want string
	}{
		{&unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}}, nil, "127.0.0.1:80"},
		{&unix.SockaddrInet6{Port: 80, Addr: [16]byte{15: 1}}, nil, "[::1]:80"},
		{&unix.SockaddrInet6{Port: 80, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}}, nil, "127.0.0.1:80"},
		{&unix.SockaddrUnix{Name: "/a\nb"}, nil, `"/a\nb"`},
		{nil, unix.ENOTCONN, "nobody (transport endpoint is not connected)"},
	} {
		if got := address(a.sa, a.err); got != a.want {
			t.Errorf("got %q, want %q", got, a.want)
		}
	}
	all, err := net.Interfaces()
	if err != nil || len(all) == 0 {
		t.Skipf("no interface: %v", err)
	}
	link := &unix.SockaddrInet6{Port: 80, ZoneId: uint32(all[0].Index), Addr: [16]byte{0: 0xfe, 1: 0x80, 15: 1}}
	if got, want := address(link, nil), "[fe80::1%"+all[0].Name+"]:80"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
