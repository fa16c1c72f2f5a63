//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What systemd sees, with a notification socket like its own.

// notifications is such a socket.
type notifications struct {
	t *testing.T
	*net.UnixConn
}

func listenNotify(t *testing.T, name string) notifications {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(c) })
	return notifications{t, c}
}

// expect waits for the next notification, in which all of the patterns must match a line.
func (n notifications) expect(patterns ...string) {
	n.t.Helper()
	if err := n.SetReadDeadline(time.Now().Add(patience)); err != nil {
		n.t.Fatal(err)
	}
	buffer := make([]byte, 4<<10)
	size, err := n.Read(buffer)
	if err != nil {
		n.t.Fatalf("waiting for %q: %v", patterns, err)
	}
	for _, p := range patterns {
		if !regexp.MustCompile(`(?m)^` + p + `$`).Match(buffer[:size]) {
			n.t.Errorf("got %q, want a line that matches %q", buffer[:size], p)
		}
	}
}

func TestNotifications(t *testing.T) {
	for name, address := range map[string]func(dir string) string{
		"path":     func(dir string) string { return filepath.Join(dir, "notify") },
		"abstract": func(dir string) string { return "@" + dir },
	} {
		t.Run(name, func(t *testing.T) {
			path := meetingPlace(t)
			notify := address(filepath.Dir(path))
			systemd := listenNotify(t, notify)
			supervised := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify) }
			first := startWith(t, supervised, "-addr", "127.0.0.1:0", "-control", path)
			systemd.expect("READY=1", fmt.Sprintf("MAINPID=%d", first.pid()), "STATUS=generation 1: .*")
			c := dial(t, first.addr())
			c.echoed("hello")

			// systemctl reload: the process starts its successor itself, from the same command.
			first.signal(unix.SIGUSR2)
			second := first.logged(`started pid (\d+)$`)[1]
			systemd.expect("RELOADING=1", `MONOTONIC_USEC=\d+`) // it has heard
			systemd.expect("RELOADING=1", `MONOTONIC_USEC=\d+`) // the takeover begins
			systemd.expect("READY=1", "MAINPID="+second, "STATUS=generation 2: .*")
			c.echoed("hello")
			// The first is awaited by whoever started it; what it wrote to, the second has too.
			eventually(t, "the first has ended", func() bool { return hasEnded(first.pid()) })

			third := startWith(t, supervised, "-addr", "127.0.0.1:0", "-control", path)
			systemd.expect("RELOADING=1")
			systemd.expect("READY=1", fmt.Sprintf("MAINPID=%d", third.pid()))
			third.signal(unix.SIGTERM)
			systemd.expect("STOPPING=1")
			expectEnd(t, third)
		})
	}
}

// hasEnded reports whether a process has, even if nobody has waited for it yet.
func hasEnded(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// The old process must not be seen to end before the supervisor knows the new one. So when the
// new one stops just before it would say so, the old one waits.
func TestNewIsNamedBeforeOldEnds(t *testing.T) {
	path := meetingPlace(t)
	notify := filepath.Join(filepath.Dir(path), "notify")
	systemd := listenNotify(t, notify)
	supervised := func(cmd *exec.Cmd) {
		quiet(cmd)
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
	}
	first := startWith(t, supervised, "-addr", "127.0.0.1:0", "-control", path, "-takeover-timeout", patience.String())
	systemd.expect("READY=1")
	second := startWith(t, func(cmd *exec.Cmd) {
		supervised(cmd)
		cmd.Env = append(cmd.Env, stopAt+`=: taken over from `)
	}, "-addr", "127.0.0.1:0", "-control", path)
	systemd.expect("RELOADING=1")
	second.stopped()
	select {
	case <-first.done:
		t.Error("the first has ended, and nobody knows of the second")
	case <-time.After(100 * time.Millisecond): // it does not end, however long we wait
	}
	second.signal(unix.SIGCONT)
	systemd.expect("READY=1", fmt.Sprintf("MAINPID=%d", second.pid()))
	expectEnd(t, first)
}

// After a takeover that came to nothing, the supervisor hears who serves on.
func TestNotifiedOfARollback(t *testing.T) {
	path := meetingPlace(t)
	notify := filepath.Join(filepath.Dir(path), "notify")
	systemd := listenNotify(t, notify)
	first := startWith(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify) },
		"-addr", "127.0.0.1:0", "-control", path)
	systemd.expect("READY=1")
	second := startWith(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, killAt+`=sending .*"taken"`) },
		"-v", "-addr", "127.0.0.1:0", "-control", path)
	systemd.expect("RELOADING=1")
	second.status()
	systemd.expect("READY=1", fmt.Sprintf("MAINPID=%d", first.pid()))
}

// A successor that fails before it asks for anything: the supervisor must not wait for ever.
func TestNotifiedOfABrokenProgram(t *testing.T) {
	path := meetingPlace(t)
	notify := filepath.Join(filepath.Dir(path), "notify")
	systemd := listenNotify(t, notify)
	program := filepath.Join(filepath.Dir(path), "program")
	first := startWith(t, func(cmd *exec.Cmd) {
		self, err := os.ReadFile(cmd.Path)
		if err := errorOf(err, os.WriteFile(program, self, 0o755)); err != nil {
			t.Fatal(err)
		}
		cmd.Path = program
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
	}, "-addr", "127.0.0.1:0", "-control", path)
	systemd.expect("READY=1")
	for _, broken := range []string{"#!/bin/sh\nexit 3\n", "no program at all"} {
		// As an update does it: another file under the same name.
		if err := errorOf(os.Remove(program), os.WriteFile(program, []byte(broken), 0o755)); err != nil {
			t.Fatal(err)
		}
		first.signal(unix.SIGUSR2)
		systemd.expect("RELOADING=1")
		systemd.expect("READY=1")
	}
	first.logged(`pid \d+ has not taken over, or has failed since: exit status 3$`)
	first.logged(`start again: .*exec format error$`)
	dial(t, first.addr()).echoed("hello")
}

// Started by a socket unit: the listeners are there before the server is.
func TestSocketActivation(t *testing.T) {
	path := meetingPlace(t)
	unit, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(unit)
	early := dial(t, unit.Addr().String()) // nobody serves yet
	early.send("hello\n")
	f, err := unit.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	first := startWith(t, func(cmd *exec.Cmd) {
		// LISTEN_PID must be that of the process itself, which only that can know.
		cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
		cmd.ExtraFiles = []*os.File{f}
	}, "-control", path)
	if addr := first.addr(); addr != unit.Addr().String() {
		t.Errorf("listening on %s, want %v", addr, unit.Addr())
	}
	early.expect("hello")

	// Its successor is not started by the unit, and has the listener all the same.
	second := startWith(t, quiet, "-control", path)
	if addr := second.addr(); addr != unit.Addr().String() {
		t.Errorf("listening on %s, want %v", addr, unit.Addr())
	}
	expectEnd(t, first)
	early.echoed("hello")
}

func TestSocketActivationGoneWrong(t *testing.T) {
	for name, environment := range map[string]string{"two": "LISTEN_FDS=2", "words": "LISTEN_FDS=many", "minus": "LISTEN_FDS=-1"} {
		t.Run(name, func(t *testing.T) {
			p := startWith(t, func(cmd *exec.Cmd) {
				cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
				cmd.Path = "/bin/sh"
				cmd.Env = append(cmd.Env, environment)
			}, "-control", meetingPlace(t))
			p.logged(`LISTEN_FDS`)
			if status := p.status(); status != 1 || len(p.err.all(``)) != 1 {
				t.Errorf("exit status %d, want 1 and one line:\n%s", status, p.err)
			}
		})
	}
}
