//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A server that is held refuses whoever wants to take over, before anything is offered; and no longer
// when it is let go.
func TestExercise3(t *testing.T) {
	bin, path := build3(t), filepath.Join(t.TempDir(), "control")
	old := start3(t, bin, "-addr", "127.0.0.1:0", "-control", path)
	a := dial3(t, old)
	a.hears("hello\n", "hello")
	old.Signal(syscall.SIGQUIT)
	old.await("]: held")
	for range 2 {
		young := start3(t, bin, "-control", path)
		young.await(`"not now: held by SIGQUIT"`)
		if line := old.await("not taken over: "); strings.Contains(line, "connections moved") {
			t.Errorf("it was held, and has begun to offer: %s", line)
		}
	}
	a.hears("still there?\n", "still there?")

	old.Signal(syscall.SIGQUIT)
	old.await("]: not held any more")
	young := start3(t, bin, "-control", path)
	young.await("connections moved: 1,")
	a.hears("and now?\n", "and now?")
	young.await("listening on ")  // and hears signals
	young.Signal(syscall.SIGQUIT) // held is not inherited
	young.await("]: held")
}

// actor3 is a process of the step.
type actor3 struct {
	*os.Process
	t     *testing.T
	lines *bufio.Scanner
}

// build3 builds the step.
func build3(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// start3 starts a process of it, which ends with the test.
func start3(t *testing.T, bin string, args ...string) actor3 {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		r.Close()
	})
	return actor3{cmd.Process, t, bufio.NewScanner(r)}
}

// await returns the next line that has text in it.
func (a actor3) await(text string) string {
	a.t.Helper()
	for a.lines.Scan() {
		if strings.Contains(a.lines.Text(), text) {
			return a.lines.Text()
		}
	}
	a.t.Fatalf("pid %d never prints %q", a.Pid, text)
	return ""
}

// client3 talks to a process that listens.
type client3 struct {
	net.Conn
	t     *testing.T
	lines *bufio.Scanner
}

func dial3(t *testing.T, a actor3) client3 {
	t.Helper()
	_, addr, _ := strings.Cut(a.await("listening on "), "listening on ")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return client3{c, t, bufio.NewScanner(c)}
}

// hears sends text and expects these lines.
func (c client3) hears(text string, want ...string) {
	c.t.Helper()
	fmt.Fprint(c, text)
	for _, line := range want {
		if c.lines.Scan(); c.lines.Text() != line {
			c.t.Fatalf("the client receives %q, want %q (%v)", c.lines.Text(), line, c.lines.Err())
		}
	}
}
