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

// COUNT is answered with how many lines this client has sent, to whichever process.
func TestExercise2(t *testing.T) {
	bin, path := build2(t), filepath.Join(t.TempDir(), "control")
	old := start2(t, bin, "-addr", "127.0.0.1:0", "-control", path)
	a := dial2(t, old)
	b := redial2(t, a)
	a.hears("one\ntwo\nCOUNT\n", "one", "two", "* lines 3")
	a.hears(" COUNT\r\nCOUNTS\n", "* lines 4", "COUNTS")
	b.hears("COUNT\n", "* lines 1")
	fmt.Fprint(a, "half ")

	young := start2(t, bin, "-control", path)
	young.await("connections moved: 2,")
	a.hears("of a line\nCOUNT\n", "half of a line", "* lines 7")
	b.hears("COUNT\n", "* lines 2")
	c := redial2(t, a)
	c.hears(strings.Repeat("x", 40<<10)+"\nCOUNT\n", strings.Repeat("x", 40<<10), "* lines 2")
}

// actor2 is a process of the step.
type actor2 struct {
	*os.Process
	t     *testing.T
	lines *bufio.Scanner
}

// build2 builds the step.
func build2(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// start2 starts a process of it, which ends with the test.
func start2(t *testing.T, bin string, args ...string) actor2 {
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
	return actor2{cmd.Process, t, bufio.NewScanner(r)}
}

// await returns the next line that has text in it.
func (a actor2) await(text string) string {
	a.t.Helper()
	for a.lines.Scan() {
		if strings.Contains(a.lines.Text(), text) {
			return a.lines.Text()
		}
	}
	a.t.Fatalf("pid %d never prints %q", a.Pid, text)
	return ""
}

// client2 talks to a process that listens.
type client2 struct {
	net.Conn
	t     *testing.T
	lines *bufio.Scanner
}

func dial2(t *testing.T, a actor2) client2 {
	t.Helper()
	_, addr, _ := strings.Cut(a.await("listening on "), "listening on ")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, 1<<20)
	return client2{c, t, lines}
}

// hears sends text and expects these lines.
func (c client2) hears(text string, want ...string) {
	c.t.Helper()
	fmt.Fprint(c, text)
	for _, line := range want {
		if c.lines.Scan(); c.lines.Text() != line {
			c.t.Fatalf("the client receives %q, want %q (%v)", c.lines.Text(), line, c.lines.Err())
		}
	}
}

// redial2 is one more client of the same address.
func redial2(t *testing.T, first client2) client2 {
	t.Helper()
	c, err := net.Dial("tcp", first.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, 1<<20)
	return client2{c, t, lines}
}
