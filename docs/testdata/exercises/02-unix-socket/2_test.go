//go:build linux

package main

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that is told to end says goodbye. One that is killed does not.
func TestExercise2(t *testing.T) {
	expect := func(p, other *process, want string) {
		t.Helper()
		said := p.logged(fmt.Sprintf(`pid %d \(.*\) (said goodbye|is gone: EOF)$`, other.pid()))[1]
		if said != want {
			t.Errorf("pid %d reports that pid %d %s, want %s", p.pid(), other.pid(), said, want)
		}
	}
	path := meetingPlace(t)
	old := startOld(t, path)
	leaves, dies, stays := startNew(t, path), startNew(t, path), startNew(t, path)
	leaves.signal(unix.SIGTERM)
	expect(old, leaves, "said goodbye")
	dies.kill()
	expect(old, dies, "is gone: EOF")

	old.signal(unix.SIGINT) // and the other way round
	expect(stays, old, "said goodbye")
	for _, p := range []*process{leaves, old, stays} {
		if status := p.status(); status != 0 {
			t.Errorf("pid %d: exit status %d, want 0", p.pid(), status)
		}
	}
}
