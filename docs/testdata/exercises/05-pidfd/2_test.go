//go:build linux

package main

import (
	"fmt"
	"testing"
)

// The new process ends the old one when it has what it came for, and not before.
func TestExercise2(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	new := startNew(t, path, "-retire")
	stays, moves := dial(t, old.addr()), dial(t, old.addr())
	stays.echoed("nothing has been stolen yet")
	moves.send("STEAL\nnext\n")
	moves.expect(stolenLine(old, new))
	moves.expect("next")
	new.logged(fmt.Sprintf(`told pid %d to end$`, old.pid()))
	if status := old.status(); status != 0 {
		t.Errorf("old: exit status %d, want 0", status)
	}
	stays.ended()
	moves.echoed("still here")
	moves.finish("")
	if said := new.err.all(`told pid`); len(said) != 1 {
		t.Errorf("it said so %d times, want once", len(said))
	}
}
