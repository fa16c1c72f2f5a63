//go:build linux

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Both processes show where the offset stands, before they read.
func TestExercise2(t *testing.T) {
	folder, err := os.MkdirTemp("", "t") // t.TempDir could be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	_, nextOld := startExercise2(t, "-control", path)
	nextOld() // that it listens
	_, nextNew := startExercise2(t, "-c", "-control", path)
	nextNew() // that it waits
	expect := func(next func() string, want string) {
		t.Helper()
		for {
			line := next()
			if _, said, found := strings.Cut(line, "]: at offset "); found && said == want {
				return
			}
			if strings.Contains(line, "the next line is") {
				t.Errorf("it says %q, want that it reads at offset %s", line, want)
				return
			}
		}
	}
	expect(nextOld, `0, the next line is "line one\n"`)
	expect(nextNew, `9, the next line is "line two\n"`)
	expect(nextOld, `18, the next line is "line three\n"`)
}

// startExercise2 starts the step as a process of its own. next waits for the next line of its log.
func startExercise2(t *testing.T, args ...string) (cmd *exec.Cmd, next func() string) {
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
