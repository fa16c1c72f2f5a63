//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// meetingPlace is a control path of the test's own, short enough for sun_path.
func meetingPlace(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "step")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "control")
}

// asNobody runs the step as uid and gid 65534.
func asNobody(t testing.TB, args ...string) *process {
	t.Helper()
	return startWith(t, nobodys(t), args...)
}

// nobodys makes a command run as uid and gid 65534, from a place where nobody may run it.
func nobodys(t testing.TB) func(*exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user: setuid: EPERM")
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(filepath.Dir(meetingPlace(t)), "step")
	if err := errorOf(os.WriteFile(exe, self, 0o755), os.Chmod(filepath.Dir(exe), 0o755)); err != nil {
		t.Fatal(err)
	}
	return func(cmd *exec.Cmd) {
		cmd.Path = exe
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
