//go:build linux

package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A protocol of one's own: lines come back with their number, also from the next process.
func TestExercise3(t *testing.T) {
	bin, path := build3(t), filepath.Join(t.TempDir(), "control")
	addr, _ := start3(t, bin, "-addr", "127.0.0.1:0", "-control", path)
	c, in := dial3(t, addr, "GET /lines HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n")
	answer, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("Upgrade") != "lines" {
		t.Fatalf("got %s, and Upgrade: %q", answer.Status, answer.Header.Get("Upgrade"))
	}
	hears := func(send, want string) {
		t.Helper()
		io.WriteString(c, send) // what fails is not answered
		if got, err := in.ReadString('\n'); want != "" && got != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	hears("hello\nhalf a ", "1: hello\n")
	start3(t, bin, "-control", path)
	hears("line\n", "2: half a line\n")
	start3(t, bin, "-control", path)
	hears("and on\n", "3: and on\n")
}

// dial3 connects, and sends something.
func dial3(t *testing.T, addr, request string) (net.Conn, *bufio.Reader) {
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

// start3 starts a process of the step, which ends with the test, and returns where it listens.
func start3(t *testing.T, bin string, args ...string) (addr string, pid int) {
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

// build3 builds the step.
func build3(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}
