//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What must be the same after the move: the socket's options, and the poller's hold on it.

// options reads what a server may have set on a connection.
func options(t *testing.T, fd int) map[string]string {
	t.Helper()
	got := map[string]string{}
	for name, option := range map[string][2]int{
		"TCP_NODELAY":   {unix.IPPROTO_TCP, unix.TCP_NODELAY},
		"TCP_KEEPIDLE":  {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		"TCP_KEEPINTVL": {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		"TCP_KEEPCNT":   {unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		"SO_KEEPALIVE":  {unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		"SO_SNDBUF":     {unix.SOL_SOCKET, unix.SO_SNDBUF},
		"IP_TOS":        {unix.IPPROTO_IP, unix.IP_TOS},
	} {
		value, err := unix.GetsockoptInt(fd, option[0], option[1])
		got[name] = fmt.Sprint(value, err)
	}
	linger, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_LINGER) // two ints: on, seconds
	got["SO_LINGER"] = fmt.Sprintf("%#x %v", linger, err)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	got["flags"] = fmt.Sprintf("%#o %v", flags, err)
	return got
}

// A real old process gives to this test: nothing is as if it had been touched.
func TestGivingLeavesOptionsAlone(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c := dial(t, old.addr())
	c.echoed("hello")
	copied := duplicate(t, old, old.sockets()[serverEnds(t)[c.ports()].inode])
	defer unix.Close(copied) // the test's own
	before := options(t, copied)

	control := join(t, path)
	c.send("STEAL\n")
	m, fds := receive(t, control, offerFDs)
	fd, err := (&taker{control: control}).fetchFD(m.content, fds)
	if err != nil {
		t.Fatal(err)
	}
	send(t, control, message{Type: "taken", ID: m.ID})
	old.logged(`left to the new process`)
	if after := options(t, fd); !maps.Equal(before, after) {
		t.Errorf("options before: %v\nafter: %v", before, after)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

// This test gives to a real new process, which adopts and serves: the same, with options that
// neither Go nor the kernel would choose. And read deadlines still work here: they stop at
// once when somebody makes the shared description blocking.
func TestTakingLeavesOptionsAlone(t *testing.T) {
	server, c := serverSide(t)
	fd := numberOf(t, server)
	for _, set := range [][3]int{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 0},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 11},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, 50000},
		{unix.IPPROTO_IP, unix.IP_TOS, 0x10},
	} {
		if err := unix.SetsockoptInt(fd, set[0], set[1], set[2]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3}); err != nil {
		t.Fatal(err)
	}
	before := options(t, fd)

	path := meetingPlace(t)
	var new *process
	control := host(t, path, func() { new = start(t, "-c", "-control", path) })
	g := newGiver(control, peer{pid: new.pid()}, patience)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = g.run(t.Context()) }() // ends with the test
	t.Cleanup(func() { <-ended })
	if err := g.give(parcel{conn: server}); err != nil {
		t.Fatal(err)
	}
	c.expect(fmt.Sprintf("* stolen: pid %d -> pid %d", os.Getpid(), new.pid()))
	c.echoed("hello")
	if after := options(t, fd); !maps.Equal(before, after) {
		t.Errorf("options before: %v\nafter: %v", before, after)
	}
	expectDeadline(t, server)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	c.echoed("only the new process has it now")
	// The read in which it waits ends when its connection is closed: its poller works.
	new.signal(unix.SIGTERM)
	c.ended()
	if status := new.status(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// After a refusal the old process reads on, with deadlines that work; and so do those of a
// process that adopts what it was given.
func TestDeadlinesWorkOnBothSides(t *testing.T) {
	server, c := serverSide(t)
	id, err := identify(server)
	if err != nil {
		t.Fatal(err)
	}
	oldEnd, newEnd := controlPair(t)
	if err := sendOffer(t.Context(), oldEnd, message{Type: "offer", ID: 1, content: content{FD: id.fd, Cookie: id.cookie}}, server); err != nil {
		t.Fatal(err)
	}
	s, err := (&taker{peer{pid: os.Getpid()}, newEnd}).take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(s.conn)
	expectDeadline(t, server)
	expectDeadline(t, s.conn)
	expectDeadline(t, server)
	c.send("hello\n")
	if n, err := s.conn.Read(make([]byte, 100)); n != 6 || err != nil {
		t.Errorf("read %d bytes and %v, want 6", n, err)
	}
}

// expectDeadline expects a read without anything to read to end at its deadline.
func expectDeadline(t *testing.T, c interface {
	SetReadDeadline(time.Time) error
	Read([]byte) (int, error)
}) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		result <- err
	}()
	select {
	case err := <-result:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read ended with %v, want its deadline", err)
		}
	case <-time.After(patience):
		t.Fatal("the read has not ended at its deadline")
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}
