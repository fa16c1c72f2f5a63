//go:build linux && hooked

// This file is not part of the tests' own program. harness_test.go builds each step that has it once
// more with this file among the step's own, and there it stands between the protocol (protocol.go) and
// the two functions by which it sends and receives. So a test can have a process killed, or held, at
// a message, and never at a moment.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

func sendMessage(c *socket.Conn, m message, fds ...int) error {
	if hook(c, "before-send "+m.Type) {
		return unix.ENOBUFS
	}
	err := realSendMessage(c, m, fds...)
	if err == nil {
		hook(c, "after-send "+m.Type)
	}
	return err
}

func receiveMessage(c *socket.Conn, most int) (message, []int, error) {
	m, fds, err := realReceiveMessage(c, most)
	if err == nil {
		hook(c, "after-receive "+m.Type)
	}
	return m, fds, err
}

var (
	mu   sync.Mutex
	seen = map[string]int{} // event to how often it has happened
)

// hook does what STEAL_HOOK says is to be done at this event: a list, separated by commas, of
// "EVENT TYPE N ACTION", as in "after-send offer 2 kill". It reports whether to fail.
func hook(c *socket.Conn, event string) (fail bool) {
	mu.Lock()
	seen[event]++
	here := fmt.Sprintf("%s %d ", event, seen[event])
	mu.Unlock()
	for spec := range strings.SplitSeq(os.Getenv("STEAL_HOOK"), ",") {
		switch action, _ := strings.CutPrefix(spec, here); action {
		case "kill":
			signalSelf(unix.SIGKILL)
		case "stop": // until SIGCONT
			signalSelf(unix.SIGSTOP)
		case "fail":
			fail = true
		case "expire": // the time-out has passed, whatever the clock says
			if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
				panic(err)
			}
		}
	}
	return fail
}

// signalSelf does not return before the signal has had its effect: it goes to this very thread.
func signalSelf(s unix.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), s); err != nil {
		panic(err)
	}
}
