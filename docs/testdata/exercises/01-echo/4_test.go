//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// With -idle, a client that sends nothing for so long is sent away, and only such a one.
func TestExercise4(t *testing.T) {
	const limit = 2 * time.Second
	_, next := startExercise4(t, "-addr", "127.0.0.1:0", "-idle", limit.String())
	line := next()
	_, addr, listens := strings.Cut(line, "listening on ")
	if !listens {
		t.Fatalf("the server says %q", line)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
		next() // who has come
		return c
	}
	idle, spoke := dial(), time.Now()
	busy := dial()
	for range 6 { // longer than the limit, which is for one silence and not for all together
		fmt.Fprintln(busy, "here")
		_, err := io.ReadFull(busy, make([]byte, len("here\n")))
		if silent := time.Since(spoke); err != nil && silent >= limit {
			t.Skipf("the machine stood still: the busy client was silent for up to %v", silent)
		}
		if err != nil {
			t.Fatalf("the busy client: %v", err)
		}
		spoke = time.Now()
		time.Sleep(limit / 4)
	}
	if n, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle client reads %d, %v, want io.EOF", n, err)
	}
	if line := next(); !strings.HasSuffix(line, ": the client was idle") {
		t.Errorf("the log says %q, want the reason", line)
	}
}

// startExercise4 starts the step as a process of its own. next waits for the next line of its log.
func startExercise4(t *testing.T, args ...string) (cmd *exec.Cmd, next func() string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd = exec.Command(program, args...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	giveUp := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		giveUp.Stop()
		cmd.Process.Kill() // it may have ended
		cmd.Wait()
	})
	log := bufio.NewReader(stderr)
	return cmd, func() string {
		t.Helper()
		line, err := log.ReadString('\n')
		if err != nil {
			t.Fatalf("the process has ended: %v", err)
		}
		return strings.TrimSuffix(line, "\n")
	}
}
