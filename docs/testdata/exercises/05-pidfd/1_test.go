//go:build linux

package main

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
)

// The whole table, in the order of the numbers, with what each of them is.
func TestExercise1(t *testing.T) {
	old := startOld(t, meetingPlace(t))
	c := dial(t, old.addr())
	c.echoed("hello")
	look := start(t, "-pid", strconv.Itoa(old.pid()), "-all")
	if status := look.status(); status != 0 {
		t.Fatalf("exit status %d, want 0:\n%s", status, look.err)
	}
	var want []int
	for name := range old.descriptors() {
		number, err := strconv.Atoi(name)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, number)
	}
	slices.Sort(want)
	var got []int
	for _, match := range look.out.all(fmt.Sprintf(`^pid %d, descriptor (\d+): here it is \d+$`, old.pid())) {
		number, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, number)
	}
	if !slices.Equal(got, want) {
		t.Errorf("it shows %v, want %v", got, want)
	}
	look.printed(fmt.Sprintf(`^  socket: AF_INET SOCK_STREAM, %v -> %v$`, c.RemoteAddr(), c.LocalAddr()))
	c.echoed("as if nothing had been")
}
