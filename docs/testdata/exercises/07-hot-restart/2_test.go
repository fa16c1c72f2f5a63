//go:build linux

package main

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// A server that is held refuses whoever wants to take over, before anything is offered; and no
// longer when it is let go.
func TestExercise2(t *testing.T) {
	path := meetingPlace(t)
	// A process that knows nothing of SIGQUIT would die of it, and not say this.
	held := start(t, "-v", "-addr", "127.0.0.1:0", "-control", path)
	c := dial(t, held.addr())
	c.echoed("hello")
	held.signal(unix.SIGQUIT)
	held.logged(`\]: held$`)

	for range 2 {
		next := start(t, "-addr", "127.0.0.1:0", "-control", path)
		next.logged(fmt.Sprintf(`hello from pid %d .*: it refused: "not now: held by SIGQUIT"$`, held.pid()))
		if status := next.status(); status != 1 {
			t.Errorf("the refused process ended with status %d, want 1", status)
		}
	}
	c.echoed("still there")
	if offers := held.err.all(`sending {"type":"offer"`); len(offers) > 0 {
		t.Errorf("it was held, and has made %d offers", len(offers))
	}

	held.signal(unix.SIGQUIT)
	held.logged(`\]: not held any more$`)
	next := start(t, "-addr", "127.0.0.1:0", "-control", path)
	next.addr()
	if status := held.status(); status != 0 {
		t.Errorf("the old process ended with status %d, want 0", status)
	}
	c.echoed("moved")
	next.signal(unix.SIGQUIT) // held is not inherited
	next.logged(`\]: held$`)
}
