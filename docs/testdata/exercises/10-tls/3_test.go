//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A certificate from a file, which the client verifies.
func TestExercise3(t *testing.T) {
	folder := t.TempDir()
	write := func(name, kind string, der []byte) (path string) {
		path = filepath.Join(folder, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config, err := newConfig() // which makes one
	if err != nil {
		t.Fatal(err)
	}
	made := config.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(made.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)

	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-control", filepath.Join(folder, "control"),
		"-cert", write("cert.pem", "CERTIFICATE", made.Certificate[0]), "-key", write("key.pem", "PRIVATE KEY", key))
	cmd.Env = append(os.Environ(), "TEST_ROLE=step")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr := ""
	for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
		_, addr, _ = strings.Cut(lines.Text(), "listening on ")
	}
	if addr == "" {
		t.Fatal("it ends, and never listens")
	}
	c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots}) // which verifies the address, too
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "hello\n")
	if got, err := bufio.NewReader(c).ReadString('\n'); got != "hello\n" {
		t.Errorf("got %q, %v", got, err)
	}
}
