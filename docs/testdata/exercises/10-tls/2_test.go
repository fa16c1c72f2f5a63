//go:build linux

package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Who does not shake hands in time is left.
func TestExercise2(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-control", filepath.Join(t.TempDir(), "control"), "-handshake", "50ms")
	cmd.Env = append(os.Environ(), "TEST_ROLE=step")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, lines := "", bufio.NewScanner(out)
	for addr == "" && lines.Scan() {
		_, addr, _ = strings.Cut(lines.Text(), "listening on ")
	}
	if addr == "" {
		t.Fatal("it ends, and never listens")
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("read %q, %v, want the end", got, err)
	}
	if lines.Scan(); !strings.Contains(lines.Text(), "i/o timeout") {
		t.Errorf("it says %q", lines.Text())
	}
}
