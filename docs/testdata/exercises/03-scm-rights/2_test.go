//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dump explains both control messages of a record that brings credentials and a descriptor.
func TestExercise2(t *testing.T) {
	b := testBench(t)
	setOption(t, b, unix.SO_PASSCRED, 1) // credentials come with every record, unasked
	if err := sendFDs(t.Context(), b.from, []byte("x"), b.null); err != nil {
		t.Fatal(err)
	}
	_, control, _, err := receiveRaw(t.Context(), b.to, make([]byte, 16), make([]byte, 256), unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	fds, _ := parseControl(control) // its error is the credentials, which it does not expect
	if err := closeFDs(fds); err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors came, %v", len(fds), err)
	}

	lines := dump(control)
	rest := strings.Join(lines, "\n") + "\n"
	for _, want := range []string{
		"cmsg_type: 2 SCM_CREDENTIALS",
		fmt.Sprintf("pid %d", os.Getpid()),
		fmt.Sprintf("uid %d", os.Getuid()),
		fmt.Sprintf("gid %d", os.Getgid()),
		"cmsg_type: 1 SCM_RIGHTS",
		fmt.Sprintf("descriptor %d", fds[0]),
	} {
		_, behind, found := strings.Cut(rest, "  "+want+"\n")
		if !found {
			t.Errorf("%q stands nowhere, or not in its place", want)
			continue
		}
		rest = behind
	}
	var shown []string
	for _, line := range lines {
		shown = append(shown, strings.TrimSpace(line[6:29]))
	}
	if got, want := strings.Join(shown, " "), hexOf(control); got != want {
		t.Errorf("the bytes shown are not those of the buffer:\ngot  %s\nwant %s", got, want)
	}
	if t.Failed() {
		t.Logf("dump says:\n%s", strings.Join(lines, "\n"))
	}
}
