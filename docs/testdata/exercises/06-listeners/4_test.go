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
	"testing"
	"time"
)

// Of two processes that drain, the older one is in a hurry.
func TestExercise4(t *testing.T) {
	bin, path := build4(t), filepath.Join(t.TempDir(), "control")
	first := start4(t, bin, "-addr", "127.0.0.1:0", "-control", path, "-drain", "1h")
	a := dial4(t, first)
	a.hears("hello\n", "hello")
	second := start4(t, bin, "-control", path, "-drain", "1h")
	first.await("draining for")
	b := dial4(t, second)
	b.hears("hello\n", "hello")
	a.hears("still there?\n", "still there?") // one process that drains is in no hurry
	third := start4(t, bin, "-control", path, "-drain", "1h")
	second.await("draining for")
	first.await("cut: clients 1")
	if a.lines.Scan() {
		t.Errorf("the first one's client receives %q, and should have been cut", a.lines.Text())
	}
	b.hears("still there?\n", "still there?")
	b.Close()
	second.await("drained in")
	dial4(t, third).hears("hello\n", "hello")
}

// actor4 is a process of the step.
type actor4 struct {
	*os.Process
	t     *testing.T
	lines *bufio.Scanner
}

// build4 builds the step.
func build4(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// start4 starts a process of it, which ends with the test.
func start4(t *testing.T, bin string, args ...string) actor4 {
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
	return actor4{cmd.Process, t, bufio.NewScanner(r)}
}

// await returns the next line that has text in it.
func (a actor4) await(text string) string {
	a.t.Helper()
	for a.lines.Scan() {
		if strings.Contains(a.lines.Text(), text) {
			return a.lines.Text()
		}
	}
	a.t.Fatalf("pid %d never prints %q", a.Pid, text)
	return ""
}

// client4 talks to a process that listens.
type client4 struct {
	net.Conn
	t     *testing.T
	lines *bufio.Scanner
}

func dial4(t *testing.T, a actor4) client4 {
	t.Helper()
	_, addr, _ := strings.Cut(a.await("listening on "), "listening on ")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return client4{c, t, bufio.NewScanner(c)}
}

// hears sends text and expects these lines.
func (c client4) hears(text string, want ...string) {
	c.t.Helper()
	fmt.Fprint(c, text)
	for _, line := range want {
		if c.lines.Scan(); c.lines.Text() != line {
			c.t.Fatalf("the client receives %q, want %q (%v)", c.lines.Text(), line, c.lines.Err())
		}
	}
}
