//go:build linux

package main

import (
	"fmt"
	"testing"
)

// How many bytes a client has had back is known to whoever serves it last.
func TestExercise2(t *testing.T) {
	counted := func(p *process, want int) {
		t.Helper()
		fd := p.logged(`closing descriptor (\d+): after the client's end-of-file$`)[1]
		if said := p.err.all(fmt.Sprintf(`: descriptor %s: %d bytes echoed$`, fd, want)); len(said) != 1 {
			t.Errorf("%d lines say that %d bytes were echoed on descriptor %s, want one", len(said), want, fd)
		}
	}
	old, new, addr := startBoth(t)
	c := dial(t, addr)
	c.echoed("one")
	c.send("two\nSTEAL\nthree\n")
	for _, want := range []string{"two", stolenLine(old, new), "three"} {
		c.expect(want)
	}
	c.finish("")
	counted(new, len("one\ntwo\nthree\n"))

	alone := startOld(t, meetingPlace(t)) // a theft that fails loses no count
	c = dial(t, alone.addr())
	c.echoed("one")
	c.send("STEAL\n")
	c.expect("* not stolen: no new process is waiting")
	c.echoed("two")
	c.finish("")
	counted(alone, len("one\ntwo\n"))
}
