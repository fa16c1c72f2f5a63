//go:build linux

package main

import (
	"io"
	"net"
	"strings"
	"testing"
)

// What comes instead of a listener is refused by name, and closed.
func TestExercise1(t *testing.T) {
	b := testBench(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(listener)
	client := dial(t, listener.Addr().String())

	send := func(fd int) error { return sendFDs(t.Context(), b.from, []byte("listener"), fd) }
	for what, sent := range map[string]func() error{
		"/dev/null":    func() error { return send(b.null) },
		"a connection": func() error { return borrow(client, send) },
	} {
		before := openFDs(t)
		if err := sent(); err != nil {
			t.Fatal(err)
		}
		err := receiveListener(t.Context(), b.to, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "not a listener") {
			t.Errorf("%s is received: error %v, want one that says: not a listener", what, err)
		}
		if now := openFDs(t); now != before {
			t.Errorf("%s is received: %d descriptors are open, want %d", what, now, before)
		}
	}

	path := meetingPlace(t) // a listener is received as before
	startOld(t, path)
	tellsAll(t, path)
}
