//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Dice are thrown once, whoever dies.
func TestExercise4(t *testing.T) {
	g := start4(t)
	c, answers := dial4(g)
	const throws = 50_000
	go fmt.Fprint(c, strings.Repeat("DIE?\nsilence\n", throws))
	seen := map[string]int{}
	for i := range throws {
		if i%10_000 == 5000 {
			unix.Kill(g.server, unix.SIGKILL)
			g.settle()
		}
		if answers.Scan(); !regexp.MustCompile(`^DIE[1-6]$`).MatchString(answers.Text()) {
			t.Fatalf("throw %d is %q (%v)", i, answers.Text(), answers.Err())
		}
		seen[answers.Text()]++
		if answers.Scan(); answers.Text() != "silence" {
			t.Fatalf("behind throw %d there is %q (%v)", i, answers.Text(), answers.Err())
		}
	}
	if len(seen) != 6 {
		t.Errorf("these dice are loaded: %v", seen)
	}
}

// group4 is a keeper, and what it has started.
type group4 struct {
	*testing.T
	keeper, server int // pids
	addr           string
	lines          *bufio.Scanner
}

// start4 builds the step, and starts a keeper, which ends with the test, and its servers with it.
func start4(t *testing.T) *group4 {
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
	g := &group4{T: t, keeper: cmd.Process.Pid, lines: bufio.NewScanner(r)}
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
func (g *group4) await(text string) string {
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
func (g *group4) settle() {
	g.Helper()
	_, line, _ := strings.Cut(g.await("has everything"), "]: ")
	fmt.Sscanf(line, "server pid %d", &g.server)
	_, g.addr, _ = strings.Cut(line, "listening on ")
}

// dial4 is a client.
func dial4(g *group4) (net.Conn, *bufio.Scanner) {
	g.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewScanner(c)
}
