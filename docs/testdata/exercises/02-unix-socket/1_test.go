//go:build linux

package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A peer is shown with its group.
func TestExercise1(t *testing.T) {
	const want = "pid 1 (uid 2, gid 3)"
	if got := (peer{&unix.Ucred{Pid: 1, Uid: 2, Gid: 3}}).String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
