//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSIGUSR2BeforeSIGTERM: if both have come, the program is started before this process ends,
// whichever select finds first.
func TestSIGUSR2BeforeSIGTERM(t *testing.T) {
	dir, err := os.MkdirTemp("", "listeners-") // t.TempDir's are too long for sun_path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	was := program
	defer func() { program = was }()
	for range 10 {
		started := filepath.Join(dir, "started")
		program = filepath.Join(dir, "program")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n: >"+started+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		control, err := listenControl(filepath.Join(dir, "control"))
		if err != nil {
			t.Fatal(err)
		}
		g := &giver{server: &server{}, taken: make(chan struct{}), control: control}
		come := signals{make(chan os.Signal, 1), make(chan os.Signal, 1)}
		come.restart <- unix.SIGUSR2
		stop := make(chan struct{})
		go g.answer(come, stop)
		stop <- struct{}{}
		<-stop
		if err := os.Remove(started); err != nil {
			t.Errorf("the program was not started: %v", err)
		}
		if _, err := os.Lstat(control.path); !os.IsNotExist(err) {
			t.Errorf("the control path is still there: %v", err)
		}
		control.Close()
		unix.Close(control.lock)
	}
}
