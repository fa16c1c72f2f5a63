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

// STATUS is answered by whoever serves.
func TestExercise1(t *testing.T) {
	bin, path := build1(t), filepath.Join(t.TempDir(), "control")
	old := start1(t, bin, "-addr", "127.0.0.1:0", "-control", path)
	a := dial1(t, old)
	first := fmt.Sprintf("* generation 1, pid %d", old.Pid)
	a.hears("STATUS\n", first)
	a.hears(" status\r\n", first)
	a.hears("STATUSES\nMY STATUS\n", "STATUSES", "MY STATUS")

	young := start1(t, bin, "-control", path)
	b := dial1(t, young)
	old.await("draining for")
	c := redial1(t, b)
	c.hears("STATUS\n", fmt.Sprintf("* generation 2, pid %d", young.Pid))
	a.hears("STATUS\n", first) // it stays with the first
}

// actor1 is a process of the step.
type actor1 struct {
	*os.Process
	t     *testing.T
	lines *bufio.Scanner
}

// build1 builds the step.
func build1(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// start1 starts a process of it, which ends with the test.
func start1(t *testing.T, bin string, args ...string) actor1 {
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
	return actor1{cmd.Process, t, bufio.NewScanner(r)}
}

// await returns the next line that has text in it.
func (a actor1) await(text string) string {
	a.t.Helper()
	for a.lines.Scan() {
		if strings.Contains(a.lines.Text(), text) {
			return a.lines.Text()
		}
	}
	a.t.Fatalf("pid %d never prints %q", a.Pid, text)
	return ""
}

// client1 talks to a process that listens.
type client1 struct {
	net.Conn
	t     *testing.T
	lines *bufio.Scanner
}

func dial1(t *testing.T, a actor1) client1 {
	t.Helper()
	_, addr, _ := strings.Cut(a.await("listening on "), "listening on ")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return client1{c, t, bufio.NewScanner(c)}
}

// hears sends text and expects these lines.
func (c client1) hears(text string, want ...string) {
	c.t.Helper()
	fmt.Fprint(c, text)
	for _, line := range want {
		if c.lines.Scan(); c.lines.Text() != line {
			c.t.Fatalf("the client receives %q, want %q (%v)", c.lines.Text(), line, c.lines.Err())
		}
	}
}

// redial1 is one more client of the same address.
func redial1(t *testing.T, first client1) client1 {
	t.Helper()
	c, err := net.Dial("tcp", first.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return client1{c, t, bufio.NewScanner(c)}
}
