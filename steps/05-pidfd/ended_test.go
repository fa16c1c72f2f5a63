//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// The new process says how the old one ended. From Linux 6.15 on the kernel tells.
func TestHowTheOldOneEnded(t *testing.T) {
	for name, end := range map[string]struct {
		signal unix.Signal
		how    string
	}{
		"killed":   {unix.SIGKILL, `was killed by signal 9 SIGKILL`},
		"told to":  {unix.SIGTERM, `ended with exit status 0`},
		"quitting": {unix.SIGQUIT, `ended with exit status 2`}, // Go's runtime prints its goroutines
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := meetingPlace(t)
			old := startOld(t, path)
			new := startNew(t, path)
			old.signal(end.signal)
			how := end.how
			if major, minor := kernel(t); major < 6 || major == 6 && minor < 15 {
				how = `ended, and how is its parent's to know: .* \(it takes Linux 6\.15, and the same pid namespace\)`
			}
			new.logged(`^new\[\d+\]: pid \d+ ` + how + `$`)
			if status := new.status(); status != 0 {
				t.Errorf("exit status %d, want 0", status)
			}
		})
	}
}

// A process that has ended is a zombie until its parent has waited for it. It is not waited for
// in vain.
func TestZombie(t *testing.T) {
	cmd, pidfd := watched(t)
	endIt(t, cmd)
	how, err := howEnded(t.Context(), pidfd)
	want := `^ended, and its parent has not asked how yet$`
	if major, minor := kernel(t); major < 6 || major == 6 && minor < 13 { // no PIDFD_GET_INFO
		want = `^ended, and how is its parent's to know: .*: (inappropriate ioctl for device|invalid argument) .*$`
	}
	if !regexp.MustCompile(want).MatchString(how) || err != nil {
		t.Errorf("got %q, %v, want %s", how, err, want)
	}
	_ = cmd.Wait() // it was killed
}

func TestWatchEndsWithItsContext(t *testing.T) {
	cmd, pidfd := watched(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if how, err := howEnded(ctx, pidfd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %q, %v", how, err)
	}
	endIt(t, cmd)
	_ = cmd.Wait() // it was killed
}

// watched is a child that does nothing, and a pidfd of it.
func watched(t *testing.T) (*exec.Cmd, *socket.Conn) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(cmd.Environ(), asRole+"=idle")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(stdin) }) // Wait may have closed it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := socket.New(fd, "pidfd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(pidfd) })
	return cmd, pidfd
}

// endIt kills a child, which stays a zombie.
func endIt(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var info unix.Siginfo
	if err := errorOf(cmd.Process.Kill(), unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)); err != nil {
		t.Fatal(err)
	}
}

func init() {
	roles["idle"] = func() { _, _ = io.Copy(io.Discard, os.Stdin) }
}
