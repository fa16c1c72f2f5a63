//go:build linux

package main

import (
	"testing"
	"time"
)

// With -idle, a client that sends nothing for so long is sent away, and only such a one.
func TestExercise2(t *testing.T) {
	const limit = time.Second
	server := start(t, "-addr", "127.0.0.1:0", "-idle", limit.String())
	addr := server.addr()
	idle, busy := dial(t, addr), dial(t, addr)
	for range 15 { // longer than the limit, which is for one silence and not for all together
		busy.echoed("not idle")
		time.Sleep(limit / 10)
	}
	idle.ended()
	server.logged(`closing descriptor \d+: the client was idle$`)
	busy.finish("")
	server.logged(`closing descriptor \d+: after the client's end-of-file$`)

	_, addr = startEcho(t) // without the flag nobody is sent away
	dial(t, addr).echoed("hello")
}
