//go:build linux

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The line that says where the server listens shows the listener's descriptor and cookie, too.
func TestExercise2(t *testing.T) {
	server, next := startExercise2(t, "-addr", "127.0.0.1:0")
	line := next()
	said := regexp.MustCompile(`: descriptor (\d+), cookie ([1-9]\d*), listening on 127\.0\.0\.1:\d+$`).FindStringSubmatch(line)
	if said == nil {
		t.Fatalf("no descriptor, or no cookie: %q", line)
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", server.Process.Pid, said[1]))
	if err != nil || !strings.HasPrefix(link, "socket:") {
		t.Errorf("descriptor %s is %q, %v, want a socket", said[1], link, err)
	}
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
