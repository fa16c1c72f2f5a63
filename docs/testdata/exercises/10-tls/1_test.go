//go:build linux

package main

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The old process says which certificate it has.
func TestExercise1(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-control", filepath.Join(t.TempDir(), "control"))
	cmd.Env = append(os.Environ(), "TEST_ROLE=step")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	said, addr := "", ""
	for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
		_, addr, _ = strings.Cut(lines.Text(), "listening on ")
		if _, fingerprint, found := strings.Cut(lines.Text(), "certificate "); found {
			said = fingerprint
		}
	}
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) // that is what the fingerprint is for
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if has := fmt.Sprintf("%x", sha256.Sum256(c.ConnectionState().PeerCertificates[0].Raw)); said != has {
		t.Errorf("it says certificate %q, and has %s", said, has)
	}
}
