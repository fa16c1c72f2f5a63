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

// -drain 0 has no end.
func TestExercise2(t *testing.T) {
	bin, path := build2(t), filepath.Join(t.TempDir(), "control")
	old := start2(t, bin, "-addr", "127.0.0.1:0", "-control", path, "-drain", "0")
	c := dial2(t, old)
	c.hears("hello\n", "hello")
	start2(t, bin, "-control", path)
	if got := old.await("draining"); !strings.HasSuffix(got, "draining until the last one has left: clients 1") {
		t.Fatalf("it says %q", got)
	}
	c.hears("still there?\n", "still there?")
	c.Close()
	old.await("drained in")

	// Another one still has its end.
	path += "2"
	old = start2(t, bin, "-addr", "127.0.0.1:0", "-control", path, "-drain", "1ms")
	dial2(t, old).hears("hello\n", "hello")
	start2(t, bin, "-control", path)
	old.await("draining for up to 1ms: clients 1")
	old.await("cut: clients 1")
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
	return client2{c, t, bufio.NewScanner(c)}
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
