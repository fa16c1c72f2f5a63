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

// An event stream begins with the time after which a client that has lost it comes again.
func TestExercise1(t *testing.T) {
	addr, _ := start1(t, build1(t), "-addr", "127.0.0.1:0", "-control", filepath.Join(t.TempDir(), "control"))
	_, in := dial1(t, addr, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := http.ReadResponse(in, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"retry: 1000\n", "\n", "id: 1\n"} {
		if got, err := in.ReadString('\n'); got != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
}

// dial1 connects, and sends something.
func dial1(t *testing.T, addr, request string) (net.Conn, *bufio.Reader) {
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

// start1 starts a process of the step, which ends with the test, and returns where it listens.
func start1(t *testing.T, bin string, args ...string) (addr string, pid int) {
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

// build1 builds the step.
func build1(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}
