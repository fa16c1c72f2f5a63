//go:build linux

package main

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Listeners are matched by their addresses: the one that is asked for again is the same socket, a
// new one is opened, and the one that is asked for no longer is closed.
func TestAddressesChange(t *testing.T) {
	path := meetingPlace(t)
	first := startWith(t, quiet, "-control", path, "-addr", "127.0.0.1:0", "-addr", "127.0.0.2:0")
	first.logged(`listening on 127\.0\.0\.2:`)
	addrs := addresses(first)
	kept, dropped := dial(t, addrs[0]), dial(t, addrs[1])
	kept.echoed("hello")
	dropped.echoed("hello")

	second := startWith(t, quiet, "-control", path, "-addr", "127.0.0.3:0", "-addr", addrs[0])
	second.logged(`no longer listening on ` + addrs[1] + `$`)
	second.logged(`listening on 127\.0\.0\.3:`)
	expectEnd(t, first)
	now := addresses(second)
	if now[0] != addrs[0] || len(now) != 2 {
		t.Errorf("listening on %v, want %s and a new one", now, addrs[0])
	}
	for _, addr := range now {
		dial(t, addr).echoed("hello")
	}
	if c, err := net.DialTimeout("tcp", addrs[1], patience); err == nil {
		closeQuietly(c)
		t.Errorf("%s is still served", addrs[1])
	}
	kept.echoed("still here")
	dropped.echoed("still here")

	// Without any -addr, it is all that the process before has.
	third := startWith(t, quiet, "-control", path)
	third.logged(`listening on 127\.0\.0\.3:`)
	expectEnd(t, second)
	if again := addresses(third); strings.Join(again, " ") != strings.Join(now, " ") {
		t.Errorf("listening on %v, want %v", again, now)
	}
}

// addresses is where a process says that it listens.
func addresses(p *process) (addrs []string) {
	for _, line := range p.err.all(`\]: listening on (\S+)$`) {
		addrs = append(addrs, line[1])
	}
	return addrs
}

// Clients that wait in accept queues while nobody accepts are served, whatever becomes of their
// listener.
func TestAcceptQueues(t *testing.T) {
	path := meetingPlace(t)
	first := startWith(t, quiet, "-control", path, "-addr", "127.0.0.1:0", "-addr", "127.0.0.2:0", "-takeover-timeout", patience.String())
	first.logged(`listening on 127\.0\.0\.2:`)
	addrs := addresses(first)
	// It stops when the old process does not accept any more, and it does not yet.
	second := startWith(t, func(cmd *exec.Cmd) {
		quiet(cmd)
		cmd.Env = append(cmd.Env, stopAt+`=received .*"kind":"listeners"`)
	}, "-v", "-control", path, "-addr", addrs[0])
	second.stopped()
	var waiting []*client
	for i := range 60 {
		c := dial(t, addrs[i%2])
		c.send(fmt.Sprintf("client %d\n", i))
		waiting = append(waiting, c)
	}
	second.signal(unix.SIGCONT)
	for i, c := range waiting {
		c.expect(fmt.Sprintf("client %d", i))
	}
	expectEnd(t, first)
	for _, c := range waiting {
		c.finish("")
	}
}

// Without a descriptor for a client that waits at an address which is given up, that client is
// lost. Nobody else is.
func TestNoDescriptorForWhoWaits(t *testing.T) {
	path := meetingPlace(t)
	first := startWith(t, quiet, "-control", path, "-addr", "127.0.0.1:0", "-addr", "127.0.0.2:0", "-takeover-timeout", patience.String())
	first.logged(`listening on 127\.0\.0\.2:`)
	addrs := addresses(first)
	moves := dial(t, addrs[0])
	moves.echoed("hello")
	second := startWith(t, func(cmd *exec.Cmd) {
		quiet(cmd)
		cmd.Env = append(cmd.Env, stopAt+`=received .*"kind":"done"`)
	}, "-v", "-control", path, "-addr", addrs[0])
	second.stopped()
	waits := dial(t, addrs[1])
	none := unix.Rlimit{Cur: uint64(lowestFree(second)), Max: uint64(lowestFree(second))}
	if err := unix.Prlimit(second.pid(), unix.RLIMIT_NOFILE, &none, nil); err != nil {
		t.Fatal(err)
	}
	second.signal(unix.SIGCONT)
	second.logged(`clients that waited at 127\.0\.0\.2:\d+: accept4: too many open files$`)
	expectEnd(t, first)
	moves.echoed("with the second")
	closeQuietly(waits)
}

// An address that cannot be had: the new process says so, and the old one goes on.
func TestAddressInUse(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(other)
	path := meetingPlace(t)
	first := startServer(t, path)
	c := dial(t, first.addr())
	second := startWith(t, quiet, "-control", path, "-addr", "127.0.0.1:0", "-addr", other.Addr().String())
	second.logged(`bind: address already in use: stop the process that has it`)
	if status := second.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	first.logged(`not taken over: pid \d+ .* went away.*; connections moved: 0, still here: 1$`)
	c.echoed("hello")
	dial(t, first.addr()).echoed("hello")
	startServer(t, path)
	expectEnd(t, first)
	c.echoed("hello")
}

// What cannot be had at all is found out before the old process is asked for anything.
func TestAddressOfAnother(t *testing.T) {
	path := meetingPlace(t)
	first := startServer(t, path)
	second := startWith(t, quiet, "-control", path, "-addr", "127.0.0.1:0", "-addr", "192.0.2.1:80") // for documentation: nobody has it
	second.logged(`bind: cannot assign requested address$`)
	if said := second.err.all(``); len(said) != 1 || second.status() != 1 {
		t.Errorf("%d lines and exit status %d, want 1 and 1", len(said), second.status())
	}
	if said := first.err.all(`taken over`); len(said) != 0 {
		t.Errorf("the old process says %q", said)
	}
}

// An address that overlaps with one that is given up: the other is open until this process owns it.
func TestAddressOverlaps(t *testing.T) {
	path := meetingPlace(t)
	first := startWith(t, quiet, "-control", path, "-addr", "0.0.0.0:0")
	_, port, err := net.SplitHostPort(first.logged(`listening on (\S+)$`)[1])
	if err != nil {
		t.Fatal(err)
	}
	second := startWith(t, quiet, "-control", path, "-addr", "127.0.0.1:"+port)
	second.logged(`address already in use: .*; or is it part of \[::\]:` + port + `, which is not asked for any more`)
	if status := second.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	dial(t, "127.0.0.1:"+port).echoed("hello")
}

// A gate that is shut lets nobody through, and opened again it lets everybody.
func TestGate(t *testing.T) {
	t.Parallel()
	tcp, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(tcp, "")
	accepted := make(chan error)
	go func() {
		for {
			err := l.pass(func() error {
				c, err := l.AcceptTCP()
				if err == nil {
					err = c.Close()
				}
				return err
			})
			accepted <- err
			if err != nil {
				return
			}
		}
	}()
	rounds := 100
	if short() {
		rounds = 20
	}
	for range rounds {
		l.shut()
		l.shut() // once more changes nothing
		c := dial(t, l.Addr().String())
		select {
		case err := <-accepted:
			t.Fatalf("accepted behind a shut gate: %v", err)
		case <-time.After(time.Millisecond):
		}
		l.open()
		l.open()
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
		c.ended()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err == nil {
		t.Error("accepted from a closed listener")
	}
}
