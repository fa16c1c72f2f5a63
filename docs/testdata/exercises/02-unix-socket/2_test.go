//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whoever finds the path taken is told by whom.
func TestExercise2(t *testing.T) {
	folder, err := os.MkdirTemp("", "t") // t.TempDir could be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	listener, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = listenControl(path)
	if err == nil {
		t.Fatal("two listen at one path")
	}
	if want := fmt.Sprintf("pid %d (uid %d)", os.Getpid(), os.Geteuid()); !strings.Contains(err.Error(), want) {
		t.Errorf("the error does not name %s, who listens: %v", want, err)
	}
}
