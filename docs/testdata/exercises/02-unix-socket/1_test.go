//go:build linux

package main

import (
	"fmt"
	"os"
	"testing"
)

// With -only, the old process admits one process and refuses all others, whatever they say.
func TestExercise1(t *testing.T) {
	path := meetingPlace(t)
	self := os.Getpid() // the one that it is to admit is this test
	old := start(t, "-control", path, "-only", fmt.Sprint(self))
	old.logged(`listening on `)

	stranger := start(t, "-c", "-control", path)
	objection := fmt.Sprintf(`another process: pid %d, not pid %d`, stranger.pid(), self)
	fails(t, stranger, `it refused: "`+objection+`"$`)
	old.logged(fmt.Sprintf(`refused pid %d \(.*\): %s$`, stranger.pid(), objection))

	c := liar(t, path)
	say(t, c, `{"type":"hello","min":1,"max":1}`)
	old.logged(fmt.Sprintf(`met pid %d \(`, self))

	path = meetingPlace(t) // without the flag all are admitted
	startOld(t, path)
	startNew(t, path)
}
