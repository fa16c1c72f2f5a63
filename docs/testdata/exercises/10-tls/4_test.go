//go:build linux

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Asked to, the old process does not even begin where nothing could be stolen.
func TestExercise4(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-control", filepath.Join(t.TempDir(), "control"), "-strict")
	cmd.Env = append(os.Environ(), "TEST_ROLE=step")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, last := "", ""
	for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
		last = lines.Text()
		_, addr, _ = strings.Cut(last, "listening on ")
	}
	server, _ := tcpPair(t, "tcp4")
	_, has := toKernel(server, &secrets{suite: suites[0x1301], client: make([]byte, 32), server: make([]byte, 32)})
	if has == nil && addr == "" {
		t.Errorf("the kernel has TLS, and it says %q", last)
	}
	if has != nil && (addr != "" || !strings.HasSuffix(last, has.Error())) {
		t.Errorf("it listens on %q, and says %q; want %v, and the end", addr, last, has)
	}
}
