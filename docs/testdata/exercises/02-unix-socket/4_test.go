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

// A record that is longer than the buffer is shown as what it is: cut.
func TestExercise4(t *testing.T) {
	folder, err := os.MkdirTemp("", "t") // t.TempDir could be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	_, next := startExercise4(t, "-control", path)
	next() // that it listens
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	full := strings.Repeat("x", 80)
	for _, record := range []string{full, full + "y", "short"} {
		fmt.Fprint(c, record)
		want := fmt.Sprintf(" says %q", record)
		if len(record) > 80 {
			want = fmt.Sprintf(" says %q and more", full)
		}
		if line := next(); !strings.HasSuffix(line, want) {
			t.Errorf("of %d bytes it says %q, want %q", len(record), line, want)
		}
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
