//go:build linux

package main

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A connection on which nothing happens between two requests is ended; and a restart gives it no more time.
func TestExercise4(t *testing.T) {
	bin, path := build4(t), filepath.Join(t.TempDir(), "control")
	const limit = 3 * time.Second
	addr, _ := start4(t, bin, "-addr", "127.0.0.1:0", "-control", path, "-idle", limit.String())
	begin := time.Now()
	_, in := dial4(t, addr, "GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
	_, events := dial4(t, addr, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	if line, err := in.ReadString('}'); err != nil { // the answer's body
		t.Fatalf("got %q, %v", line, err)
	}
	start4(t, bin, "-control", path, "-idle", "1h")
	if rest, err := io.ReadAll(in); len(rest) > 1 || err != nil { // the newline behind it
		t.Errorf("got %q, %v; want the end", rest, err)
	}
	if took := time.Since(begin); took < limit {
		t.Errorf("it was ended after %v, and had %v", took, limit)
	}
	for said := ""; !strings.Contains(said, "id: 50\n"); { // an event stream is not idle
		line, err := events.ReadString('\n')
		if err != nil {
			t.Fatalf("the event stream has ended after %q: %v", said, err)
		}
		said = line
	}
}

// dial4 connects, and sends something.
func dial4(t *testing.T, addr, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// start4 starts a process of the step, which ends with the test, and returns where it listens.
func start4(t *testing.T, bin string, args ...string) (addr string, pid int) {
	t.Helper()
	cmd := exec.Command(bin, args...)
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	said := ""
	for lines := bufio.NewScanner(out); lines.Scan(); said += lines.Text() + "\n" {
		if _, addr, found := strings.Cut(lines.Text(), "listening on "); found {
			go io.Copy(io.Discard, out)
			return addr, cmd.Process.Pid
		}
	}
	t.Fatalf("the step does not listen: %q", said)
	return "", 0
}

// build4 builds the step.
func build4(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}
