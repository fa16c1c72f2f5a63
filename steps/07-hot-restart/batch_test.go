//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dup is a descriptor as a message would bring it.
func dup(t *testing.T, fd int) int {
	t.Helper()
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

func openFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestBatch: whatever a session holds arrives, byte by byte.
func TestBatch(t *testing.T) {
	states := []state{{}, {In: []byte("half \xff a line\n\x00")}, {Out: bytes.Repeat([]byte("x"), 3*bufferSize)},
		{Ended: true}, {Inside: true}, {In: []byte("a"), Out: []byte("b"), Ended: true, Inside: true}}
	var batch []*session
	for i, state := range states {
		server, _ := pair(t)
		batch = append(batch, sessionOf(t, server))
		batch[i].state = state
	}
	what, fds, err := pack(batch)
	if err != nil || what.What != "connections" || len(fds) != len(batch)+1 {
		t.Fatal(what, fds, err)
	}
	for i, fd := range fds[1:] {
		fds[i+1] = dup(t, fd)
	}
	var u unpacker
	got, err := u.unpack(fds)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range got {
		if !reflect.DeepEqual(s.state, states[i]) || s.cookie != batch[i].cookie {
			t.Errorf("%d: got %+.40v, want %+.40v", i, s.state, states[i])
		}
	}
	closeAll(got)
}

// TestLyingBatch: a batch that is not what it says is refused whole, and leaves nothing open.
func TestLyingBatch(t *testing.T) {
	server, _ := pair(t)
	s := sessionOf(t, server)
	other, _ := pair(t)
	stranger := sessionOf(t, other)
	memfd := func(text string, sealed int) int {
		fd, err := newMemfd()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealed); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	speaks := func(list ...packed) string {
		text, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + "\n"
	}
	truth := speaks(packed{Cookie: s.cookie})
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Listen(listener, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer closeFDs(pipe[:])
	huge, err := newMemfd()
	if err == nil {
		err = unix.Ftruncate(huge, maxBytes+1)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(huge), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(huge)
	before := openFDs(t)
	for name, lie := range map[string]struct {
		fds    []int
		reason string
	}{
		"nothing at all":           {nil, "without a memfd"},
		"a pipe for a memfd":       {[]int{dup(t, pipe[0]), dup(t, s.fd)}, "F_GET_SEALS"},
		"not sealed":               {[]int{memfd(truth, unix.F_SEAL_GROW), dup(t, s.fd)}, "could still change it"},
		"too long":                 {[]int{dup(t, huge), dup(t, s.fd)}, "bytes, and at most"},
		"no JSON":                  {[]int{memfd("sessions", seals), dup(t, s.fd)}, "invalid character"},
		"one too few":              {[]int{memfd(truth, seals)}, "speaks of 1 sockets, and 0 came"},
		"one too many":             {[]int{memfd(truth, seals), dup(t, s.fd), dup(t, s.fd)}, "speaks of 1 sockets, and 2 came"},
		"another's":                {[]int{memfd(truth, seals), dup(t, stranger.fd)}, "another socket"},
		"the second another's":     {[]int{memfd(speaks(packed{Cookie: s.cookie}, packed{Cookie: s.cookie}), seals), dup(t, s.fd), dup(t, stranger.fd)}, "another socket"},
		"a pipe":                   {[]int{memfd(truth, seals), dup(t, pipe[0])}, "not a TCP socket"},
		"a listener":               {[]int{memfd(truth, seals), dup(t, listener)}, "not a connection"},
		"bytes that are not there": {[]int{memfd(speaks(packed{Cookie: s.cookie, In: 7})+"short", seals), dup(t, s.fd)}, "ends within"},
		"fewer than none":          {[]int{memfd(speaks(packed{Cookie: s.cookie, Out: -7}), seals), dup(t, s.fd)}, "ends within"},
		"more than there can be":   {[]int{memfd(speaks(packed{Cookie: s.cookie, In: 1, Out: math.MaxInt})+"x", seals), dup(t, s.fd)}, "ends within"},
	} {
		var u unpacker
		if _, err := u.unpack(lie.fds); err == nil || !strings.Contains(err.Error(), lie.reason) {
			t.Errorf("%s: got %v, want %q", name, err, lie.reason)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, and were %d", after, before)
	}
}

// TestSealed: what was packed cannot be changed any more.
func TestSealed(t *testing.T) {
	server, _ := pair(t)
	_, fds, err := pack([]*session{sessionOf(t, server)})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	if _, err := unix.Pwrite(fds[0], []byte("x"), 0); err != unix.EPERM {
		t.Errorf("write: %v, want EPERM", err)
	}
	if err := unix.Ftruncate(fds[0], 0); err != unix.EPERM {
		t.Errorf("ftruncate: %v, want EPERM", err)
	}
}

// TestReset: a connection that its client has reset is no reason to refuse the others.
func TestReset(t *testing.T) {
	server, client := pair(t)
	s := sessionOf(t, server)
	client.SetLinger(0)
	client.Close()
	for {
		info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == 7 { // TCP_CLOSE
			break
		}
	}
	if err := verifyConnection(s.fd, s.cookie); err != nil {
		t.Error(err)
	}
}
