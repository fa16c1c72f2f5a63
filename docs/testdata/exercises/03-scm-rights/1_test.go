//go:build linux

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The new process shows that what it has received is close-on-exec.
func TestExercise1(t *testing.T) {
	folder, err := os.MkdirTemp("", "t") // t.TempDir could be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	_, nextOld := startExercise1(t, "-control", path)
	nextOld() // that it listens
	_, nextNew := startExercise1(t, "-c", "-control", path)
	nextNew() // that it waits
	if line := nextNew(); !regexp.MustCompile(`: received descriptor \d+, close-on-exec true$`).MatchString(line) {
		t.Errorf("the new process says %q", line)
	}
}

// startExercise1 starts the step as a process of its own. next waits for the next line of its log.
func startExercise1(t *testing.T, args ...string) (cmd *exec.Cmd, next func() string) {
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
