//go:build linux

package main

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Credentials in a control message of their own are no reason to refuse what came with them.
func TestExercise4(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	from, fromErr := socket.New(pair[0], "from")
	to, toErr := socket.New(pair[1], "to")
	if err := errors.Join(fromErr, toErr); err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	giveUp := time.Now().Add(30 * time.Second)
	if err := errors.Join(from.SetDeadline(giveUp), to.SetDeadline(giveUp)); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, want := range []int{0, 1, scmMaxFD} {
		if err := sendFDs(from, []byte("x"), slices.Repeat([]int{int(null.Fd())}, want)...); err != nil {
			t.Fatal(err)
		}
		n, fds, err := receiveFDs(to, make([]byte, 1), want, want)
		closeFDs(fds)
		if n != 1 || len(fds) != want || err != nil {
			t.Errorf("received %d bytes and %d descriptors, %v, want %d descriptors", n, len(fds), err, want)
		}
	}
}
