//go:build linux

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// With -only, the old process talks to one process, and to no other.
func TestExercise3(t *testing.T) {
	folder, err := os.MkdirTemp("", "t") // t.TempDir could be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	self := os.Getpid() // the one that may come is this test
	_, next := startExercise3(t, "-control", path, "-only", fmt.Sprint(self))
	if line := next(); !strings.HasSuffix(line, "listening on "+path) {
		t.Fatalf("the old process says %q", line)
	}

	stranger, _ := startExercise3(t, "-c", "-control", path)
	want := fmt.Sprintf(": pid %d (uid %d) is not pid %d", stranger.Process.Pid, os.Geteuid(), self)
	if line := next(); !strings.HasSuffix(line, want) {
		t.Errorf("the old process says %q, want %q", line, want)
	}

	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "it is me")
	want = fmt.Sprintf(": pid %d (uid %d) says %q", self, os.Geteuid(), "it is me")
	if line := next(); !strings.HasSuffix(line, want) {
		t.Errorf("the old process says %q, want %q", line, want)
	}
}

// startExercise3 starts the step as a process of its own. next waits for the next line of its log.
func startExercise3(t *testing.T, args ...string) (cmd *exec.Cmd, next func() string) {
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
