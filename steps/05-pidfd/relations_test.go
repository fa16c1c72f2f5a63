//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who may fetch whose descriptors depends on how the two are related, on capabilities and on
// Yama's mode. The test tries all relations, checks the answers and logs them, for a table in
// docs/kernels.md.

// relations are what the role of that name tries, and up to which mode of Yama that is allowed
// to those who lack CAP_SYS_PTRACE.
var relations = []struct {
	name    string
	upTo    int
	attempt func() (string, error)
}{
	{"parent -> child", 1, func() (string, error) {
		return withChild(func(child int) (string, error) { return attempt(child, 0), nil })
	}},
	{"child -> parent", 0, func() (string, error) { return inChild(os.Getpid(), 0, false) }},
	{"child -> parent that named it", 1, func() (string, error) { return inChild(os.Getpid(), 0, true) }},
	{"sibling -> sibling", 0, func() (string, error) {
		return withChild(func(sibling int) (string, error) { return inChild(sibling, 0, false) })
	}},
	{"child -> parent, wrong number", 0, func() (string, error) { return inChild(os.Getpid(), 1<<20, false) }},
}

func TestRelations(t *testing.T) {
	takers := map[string]string{"any user": ""}
	if os.Geteuid() == 0 {
		takers = map[string]string{"root with CAP_SYS_PTRACE": "", "root without CAP_SYS_PTRACE": "without CAP_SYS_PTRACE"}
	}
	for taker, confinement := range takers {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(cmd.Environ(), asRole+"=relations")
		if confinement != "" {
			cmd.Env = append(cmd.Environ(), asRole+"=confined", confine+"="+confinement, then+"=relations")
		}
		out, err := cmd.CombinedOutput()
		answers := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err != nil || len(answers) != len(relations) {
			t.Fatalf("%s: %q, %v", taker, out, err)
		}
		for i, r := range relations {
			want := "yes"
			if strings.HasSuffix(r.name, "wrong number") {
				want = "EBADF"
			}
			if yama() == 3 || yama() > r.upTo && taker != "root with CAP_SYS_PTRACE" {
				want = fmt.Sprintf("EPERM Yama's ptrace_scope is %d", yama())
			}
			t.Logf("relation %s, %s: %s", taker, r.name, strings.Fields(answers[i])[0])
			if !strings.HasPrefix(answers[i], want) {
				t.Errorf("%s, %s: got %q, want %q", taker, r.name, answers[i], want)
			}
		}
	}
}

func init() {
	roles["relations"] = func() {
		for _, r := range relations {
			answer, err := r.attempt()
			if err != nil {
				answer = err.Error()
			}
			fmt.Println(answer)
		}
	}
	roles["attempt"] = func() {
		var pid, number int
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when we may begin
		if _, err := fmt.Sscan(os.Getenv(attemptAt), &pid, &number); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(attempt(pid, number))
	}
}

// attemptAt is what the role called attempt is to fetch: a pid and a number.
const attemptAt = "STEP_TEST_ATTEMPT_AT"

// attempt fetches a descriptor, and says yes, or the errno and its explanation.
func attempt(pid, number int) string {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "pidfd_open: " + err.Error()
	}
	t := target{pidfd, pid}
	defer t.Close()
	fd, err := t.fetch(number)
	if err == nil {
		err = unix.Close(fd)
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		_, why, _ := strings.Cut(err.Error(), errno.Error()+": ")
		return unix.ErrnoName(errno) + " " + why
	}
	return "yes"
}

// inChild has a child attempt it, perhaps one that this process has named with PR_SET_PTRACER.
func inChild(pid, number int, named bool) (string, error) {
	child := exec.Command("/proc/self/exe")
	child.Env = append(child.Environ(), asRole+"=attempt", attemptAt+"="+strconv.Itoa(pid)+" "+strconv.Itoa(number))
	stdin, err := child.StdinPipe()
	if err != nil {
		return "", err
	}
	var out strings.Builder
	child.Stdout = &out
	if err := child.Start(); err != nil {
		return "", err
	}
	if named {
		setPtracer(child.Process.Pid)
		defer setPtracer(0)
	}
	err = errorOf(stdin.Close(), child.Wait())
	return strings.TrimSpace(out.String()), err
}

// withChild calls f with the pid of a child that waits until f has returned.
func withChild(f func(pid int) (string, error)) (string, error) {
	child := exec.Command("/proc/self/exe")
	child.Env = append(child.Environ(), asRole+"=idle")
	stdin, err := child.StdinPipe()
	if err != nil {
		return "", err
	}
	if err := child.Start(); err != nil {
		return "", err
	}
	answer, err := f(child.Process.Pid)
	return answer, errorOf(err, stdin.Close(), child.Wait())
}
