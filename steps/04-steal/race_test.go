//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Both halves of the protocol in one process, over real sockets: faster than two processes,
// and so tried much more often.

// controlPair is the two ends of a control connection.
func controlPair(t testing.TB) (old, new *socket.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	old, oldErr := socket.New(fds[0], "old")
	new, newErr := socket.New(fds[1], "new")
	if err := errors.Join(oldErr, newErr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(old); closeQuietly(new) })
	return old, new
}

// The time-out strikes while taken is on its way, thousands of times. Whatever each side sees,
// exactly one of them must end up with the connection.
func TestTakenRacesWithdraw(t *testing.T) {
	rounds := 5000
	if testing.Short() {
		rounds = 150
	}
	server, _ := serverSide(t)
	timeout := 200 * time.Microsecond
	taken := 0
	for range rounds {
		if takenWithin(t, server, timeout) {
			taken++
			timeout -= timeout / 20 // steer towards the moment at which both are as likely
		} else {
			timeout += timeout/20 + 1
		}
	}
	t.Logf("%d taken, %d withdrawn; the last time-out was %v", taken, rounds-taken, timeout)
	if taken < rounds/10 || taken > rounds*9/10 {
		t.Errorf("%d of %d taken: that was no race", taken, rounds)
	}
}

// takenWithin makes one offer and reports whether the new side has it.
func takenWithin(t *testing.T, server syscall.Conn, timeout time.Duration) bool {
	t.Helper()
	oldEnd, newEnd := controlPair(t)
	defer closeQuietly(oldEnd)
	defer closeQuietly(newEnd)
	g := newGiver(oldEnd, peer{pid: 1}, timeout)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = g.run(ctx) }() // whatever it says, the next round begins
	got := make(chan bool, 1)
	go func() {
		s, err := (&taker{peer{pid: 2}, newEnd}).take(t.Context())
		if err == nil {
			closeQuietly(s.conn)
		}
		got <- err == nil
	}()
	failure := g.give(parcel{conn: server})
	cancel()
	<-ended
	g.stop()
	// Without an offer in the queue, the new side waits until we hang up. After an offer that
	// is settled, hanging up changes nothing.
	closeQuietly(oldEnd)
	newHasIt := <-got
	if oldHasIt := failure != nil; oldHasIt == newHasIt {
		t.Fatalf("old side has the connection: %v (%v); new side: %v", oldHasIt, failure, newHasIt)
	}
	return newHasIt
}

// A queue so small that the offer leaves no room to withdraw it. The old side must not go on
// before it has: a new side that wakes up later would take the connection for an orphan.
func TestWithdrawWaitsForRoom(t *testing.T) {
	server, _ := serverSide(t)
	oldEnd, newEnd := controlPair(t)
	if err := oldEnd.SetsockoptInt(unix.SOL_SOCKET, unix.SO_SNDBUF, 11500); err != nil {
		t.Fatal(err)
	}
	const timeout = 500 * time.Millisecond // in which the offer must be sent, also on a slow machine
	g := newGiver(oldEnd, peer{pid: 1}, timeout)
	running := make(chan error, 1)
	go func() { running <- g.run(t.Context()) }()
	failure := make(chan error, 1)
	go func() { failure <- g.give(parcel{conn: server, unread: make([]byte, bufferSize)}) }()

	full := func() bool { return sendQueue(t, oldEnd) > bufferSize }
	eventually(t, "the offer is in the queue", full)
	select {
	case err := <-failure:
		t.Fatalf("the old side has gone on (%v), and the new side knows nothing of it", err)
	case <-time.After(2 * timeout): // the time-out is long over, and it still waits
	}
	s, err := (&taker{peer{pid: 2}, newEnd}).take(t.Context())
	if err == nil {
		closeQuietly(s.conn)
	}
	if oldHasIt, newHasIt := <-failure != nil, err == nil; oldHasIt == newHasIt {
		t.Errorf("old side has the connection: %v; new side: %v (%v)", oldHasIt, newHasIt, err)
	}
	if err := <-running; err == nil {
		t.Error("the old side waits on, although nobody is there")
	}
}

// sendQueue is how many bytes have been sent and not received yet (SIOCOUTQ, unix(7)).
func sendQueue(t *testing.T, c *socket.Conn) (n int) {
	t.Helper()
	if err := borrow(c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// Whenever the other side closes, a send says that it is gone, and a receive that this is the end.
// Older kernels have their own words for it while it is closing.
func TestSendRacesClose(t *testing.T) {
	rounds := 5000
	if testing.Short() {
		rounds = 50
	}
	for range rounds {
		here, there := controlPair(t)
		go closeQuietly(there)
		var err error
		for err == nil {
			err = sendMessage(t.Context(), here, message{Type: "taken"})
		}
		if !isGone(err) {
			t.Fatalf("send: %v", err)
		}
		if _, _, end := receiveMessage(t.Context(), here, 0); !errors.Is(end, io.EOF) {
			t.Fatalf("receive, after %v: %v, want the end", err, end)
		}
		closeQuietly(here)
	}
}
