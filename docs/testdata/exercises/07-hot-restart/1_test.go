//go:build linux

package main

import (
	"fmt"
	"strings"
	"testing"
)

// WHO is answered by whoever serves, with all that the client has had back before: from this
// process, and from those before it.
func TestExercise1(t *testing.T) {
	path := meetingPlace(t)
	first := start(t, "-addr", "127.0.0.1:0", "-control", path)
	c := dial(t, first.addr())
	had := 0
	expect := func(want string) {
		t.Helper()
		c.expect(want)
		had += len(want) + 1
	}
	expectWho := func(p *process) {
		t.Helper()
		if line, want := c.line(), fmt.Sprintf("* pid %d: %d bytes so far", p.pid(), had); line != want {
			t.Fatalf("WHO is answered with %q, want %q", line, want)
		} else {
			had += len(line) + 1
		}
	}
	c.send("hello\nWHO\n")
	expect("hello")
	expectWho(first)
	c.send(" who\r\nWHOEVER\nhalf")
	expectWho(first)
	expect("WHOEVER")

	second := start(t, "-addr", "127.0.0.1:0", "-control", path)
	second.addr()
	c.send(" of a line\nWHO\n")
	expect("half of a line")
	expectWho(second)

	// A client that does not read: most of the answer waits in the server, and then in the next.
	const lines = 1500
	long := strings.Repeat("x", 16<<10-2)
	go func() {
		for range lines {
			if _, err := fmt.Fprintln(c, long); err != nil {
				t.Error(err)
				return
			}
		}
		if _, err := fmt.Fprintln(c, "WHO"); err != nil {
			t.Error(err)
		}
	}()
	second.printed(`^"xxx`)
	third := start(t, "-addr", "127.0.0.1:0", "-control", path)
	third.addr()
	for range lines {
		expect(long)
	}
	expectWho(third)
	c.finish("")
}
