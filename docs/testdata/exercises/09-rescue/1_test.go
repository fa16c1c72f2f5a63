//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The answer is in capitals, whoever serves.
func TestExercise1(t *testing.T) {
	g := start1(t)
	c, answers := dial1(g)
	for _, line := range []string{"hello", "Still there?", "and again"} {
		fmt.Fprintln(c, line)
		if answers.Scan(); answers.Text() != strings.ToUpper(line) {
			t.Fatalf("%q is answered with %q (%v)", line, answers.Text(), answers.Err())
		}
		unix.Kill(g.server, unix.SIGKILL)
		g.settle()
	}
}

// group1 is a keeper, and what it has started.
type group1 struct {
	*testing.T
	keeper, server int // pids
	addr           string
	lines          *bufio.Scanner
}

// start1 builds the step, and starts a keeper, which ends with the test, and its servers with it.
func start1(t *testing.T) *group1 {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	cmd := exec.CommandContext(ctx, bin, "-addr", "127.0.0.1:0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that they can be ended all at once
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	r, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	g := &group1{T: t, keeper: cmd.Process.Pid, lines: bufio.NewScanner(r)}
	t.Cleanup(func() {
		cancel()
		for g.lines.Scan() { // until all have ended
		}
		cmd.Wait()
	})
	g.settle()
	return g
}

// await returns the next line of the log that has text in it.
func (g *group1) await(text string) string {
	g.Helper()
	for g.lines.Scan() {
		if strings.Contains(g.lines.Text(), text) {
			return g.lines.Text()
		}
	}
	g.Fatalf("nobody logs %q", text)
	return ""
}

// settle waits until a server has everything.
func (g *group1) settle() {
	g.Helper()
	_, line, _ := strings.Cut(g.await("has everything"), "]: ")
	fmt.Sscanf(line, "server pid %d", &g.server)
	_, g.addr, _ = strings.Cut(line, "listening on ")
}

// dial1 is a client.
func dial1(g *group1) (net.Conn, *bufio.Scanner) {
	g.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewScanner(c)
}
