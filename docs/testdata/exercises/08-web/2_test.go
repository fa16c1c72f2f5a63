//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A client is told when its stream has moved, before the next event.
func TestExercise2(t *testing.T) {
	bin, path := build2(t), filepath.Join(t.TempDir(), "control")
	addr, first := start2(t, bin, "-addr", "127.0.0.1:0", "-control", path)
	_, in := dial2(t, addr, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := http.ReadResponse(in, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, next := start2(t, bin, "-control", path)
		want := fmt.Sprintf("event: moved\ndata: %d -> %d\n\n", first, next)
		first = next
		said := ""
		for !strings.Contains(said, want) {
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if said += line; strings.Contains(line, fmt.Sprintf(`"pid": %d,`, next)) {
				t.Fatalf("an event of the new process came before %q, in %q", want, said)
			}
		}
	}
}

// dial2 connects, and sends something.
func dial2(t *testing.T, addr, request string) (net.Conn, *bufio.Reader) {
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

// start2 starts a process of the step, which ends with the test, and returns where it listens.
func start2(t *testing.T, bin string, args ...string) (addr string, pid int) {
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

// build2 builds the step.
func build2(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}
