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

// Before the server says that it listens, it lists its descriptor table.
func TestExercise3(t *testing.T) {
	server, next := startExercise3(t, "-addr", "127.0.0.1:0")
	listed := map[string]int{}
	for line := next(); !strings.Contains(line, "listening on "); line = next() {
		_, said, _ := strings.Cut(line, "]: ")
		listed[said]++
	}
	table := fmt.Sprintf("/proc/%d/fd", server.Process.Pid)
	entries, err := os.ReadDir(table) // from outside, and nobody has connected meanwhile
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(table, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("descriptor %s is %s", e.Name(), link)
		if listed[want] != 1 {
			t.Errorf("%d lines say %q, want one", listed[want], want)
		}
		delete(listed, want)
	}
	if len(listed) > 0 {
		t.Errorf("the log also says %v", listed)
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
