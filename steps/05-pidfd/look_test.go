//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Everything that look says about a descriptor, for one of each kind in this very process.
func TestDescribe(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "a\nfile"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(file)
	if _, err := file.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(r)
	defer closeQuietly(w)
	listener, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(listener)
	server, c := serverSide(t)
	end, _ := controlPair(t)
	meeting, err := listenControl(t.Context(), meetingPlace(t))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(meeting)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll) // the test's own
	place, err := unix.Open(file.Name(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(place) // the test's own
	id, err := identify(server)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		fd    int
		lines []string
	}{
		{numberOf(t, file), []string{
			fmt.Sprintf("kind: file, %q", file.Name()), "flags: O_RDWR", "offset: 5 of 5 bytes"}},
		{numberOf(t, r), []string{"kind: pipe, ", "flags: O_RDONLY|O_NONBLOCK"}},
		{numberOf(t, w), []string{"kind: pipe, ", "flags: O_WRONLY|O_NONBLOCK"}},
		{place, []string{fmt.Sprintf("kind: file, %q", file.Name()), "flags: O_RDONLY|O_PATH"}},
		{epoll, []string{`kind: no file, "anon_inode:[eventpoll]"`, "flags: O_RDWR"}},
		{id.fd, []string{
			fmt.Sprintf(`kind: socket, "socket:[%d]"`, id.inode), "flags: O_RDWR|O_NONBLOCK",
			fmt.Sprintf("socket: AF_INET SOCK_STREAM, %v -> %v", c.RemoteAddr(), c.LocalAddr()),
			fmt.Sprintf("identity: inode %d, cookie %d", id.inode, id.cookie)}},
		{numberOf(t, listener), []string{
			"kind: socket, ", "flags: O_RDWR|O_NONBLOCK",
			fmt.Sprintf("socket: AF_INET SOCK_STREAM, listening on %v", listener.Addr()), "identity: inode "}},
		{numberOf(t, end), []string{
			"kind: socket, ", "flags: O_RDWR|O_NONBLOCK",
			"socket: AF_UNIX SOCK_SEQPACKET, unnamed -> unnamed", "identity: inode "}},
		{numberOf(t, meeting), []string{
			"kind: socket, ", "flags: O_RDWR|O_NONBLOCK",
			fmt.Sprintf("socket: AF_UNIX SOCK_SEQPACKET, listening on %q", meeting.path), "identity: inode "}},
	} {
		lines, err := describe(want.fd)
		if err != nil || len(lines) != len(want.lines) {
			t.Errorf("got %q, %v, want %q", lines, err, want.lines)
			continue
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, want.lines[i]) {
				t.Errorf("got %q, want %q", line, want.lines[i])
			}
		}
	}
}

// Ends of sockets that no program here has.
func TestDescribeOtherEnds(t *testing.T) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) // the test's own
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`^socket: AF_NETLINK SOCK_RAW, port \d+, groups 0x1 -> port 0, groups 0x0$`)
	if lines, err := describeSocket(fd); err != nil || !want.MatchString(lines[0]) {
		t.Errorf("got %q, %v, want %q", lines, err, want)
	}
	for _, e := range []struct {
		sa   unix.Sockaddr
		err  error
		want string
	}{
		{&unix.SockaddrVM{CID: 2, Port: 1024}, nil, "2:1024"},
		{&unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: 1024}, nil, "any:1024"},
		{&unix.SockaddrLinklayer{}, nil, "an address of its own kind"},
		{nil, unix.EAFNOSUPPORT, "an address of its own kind"}, // x/sys does not know it
		{nil, unix.EOPNOTSUPP, "nobody"},                       // as a packet socket says of its peer
		{nil, unix.ENOBUFS, "unknown (no buffer space available)"},
	} {
		if got := end(e.sa, e.err); got != e.want {
			t.Errorf("got %q, want %q", got, e.want)
		}
	}
	if got := nameOf(unix.AF_ALG, "family", domains); got != "family 38" {
		t.Errorf("got %q", got)
	}
}

// The test looks at a connection of the step, and the connection does not notice.
func TestLook(t *testing.T) {
	mayCarry(t)
	old := startOld(t, meetingPlace(t))
	c := dial(t, old.addr())
	c.echoed("hello")
	number := old.logged(`is descriptor (\d+), inode`)[1]
	before := len(old.descriptors())
	fd, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := look(old.pid(), fd, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("pid %d, descriptor %d: here it is ", old.pid(), fd),
		fmt.Sprintf("  socket: AF_INET SOCK_STREAM, %v -> %v\n", c.RemoteAddr(), c.LocalAddr()),
		"  description: the same there and here (kcmp)\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got %s, want %q", &out, want)
		}
	}
	if err := look(old.pid(), fd, full{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want that it could not be written", err)
	}
	c.echoed("as if nothing had been")
	if after := len(old.descriptors()); after != before {
		t.Errorf("it has %d descriptors, and had %d", after, before)
	}
}

// full is where nothing can be written any more.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, unix.ENOSPC }

// kcmp tells the same file from the same description.
func TestCompare(t *testing.T) {
	var files [2]*os.File
	for i := range files {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer closeQuietly(f)
		files[i] = f
	}
	self := openSelf(t)
	one, other := numberOf(t, files[0]), numberOf(t, files[1])
	if got := self.compare(one, one); got != "the same there and here (kcmp)" {
		t.Errorf("one and one: %s", got)
	}
	if got := self.compare(one, other); got != "another one by now (kcmp)" {
		t.Errorf("one and another: %s", got)
	}
}

func TestLookUsage(t *testing.T) {
	for _, wrong := range [][]string{{"-pid", "1"}, {"-fd", "1"}, {"-pid", "-1", "-fd", "1"}, {"-pid", "1", "-fd", "-1"}, {"-pid", "-5"}, {"-fd", "-7"}, {"-pid", "4294967297", "-fd", "0"}} {
		p := start(t, wrong...)
		if status := p.status(); status != 2 || len(p.err.all(``)) != 1 {
			t.Errorf("%v: exit status %d, want 2 and one line:\n%s", wrong, status, p.err)
		}
	}
}
