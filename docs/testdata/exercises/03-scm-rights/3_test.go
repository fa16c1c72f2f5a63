//go:build linux

package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// receiveListener takes listeners, and closes everything else that comes.
func TestExercise3(t *testing.T) {
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
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	table := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for name, fd := range map[string]int{"no socket": int(null.Fd()), "no listener": pair[0]} {
		before := table()
		if err := sendFDs(from, []byte("listener"), fd); err != nil {
			t.Fatal(err)
		}
		if err := receiveListener(to); err == nil || !strings.Contains(err.Error(), "not a listener") {
			t.Errorf("%s: got %v, want that it is not a listener", name, err)
		}
		if now := table(); now != before {
			t.Errorf("%s: %d descriptors have leaked", name, now-before)
		}
	}
	sent := make(chan error)
	go func() { sent <- sendListener(from) }()
	if err := errors.Join(receiveListener(to), <-sent); err != nil {
		t.Errorf("a listener: %v", err)
	}
}
