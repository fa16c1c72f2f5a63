//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Why a descriptor cannot be fetched. The kernel answers with a number, and behind EPERM there are
// seven reasons. To copy: this file with pidfd.go.

// explain adds to an error of pidfd_open or pidfd_getfd what is behind it, and what would help.
func (t target) explain(err error) error {
	why := ""
	switch {
	case errors.Is(err, unix.EPERM):
		why = t.denied()
	case errors.Is(err, unix.ENOSYS):
		why = "it needs Linux 5.6, and a container whose seccomp profile knows it"
	case errors.Is(err, unix.ESRCH):
		why = "that process is gone"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // which of them, differs between kernels
		why = "that process is gone, or it is a thread of another"
	case errors.Is(err, unix.EBADF):
		why = "that process has no such descriptor"
		if polled(t.pidfd, unix.POLLIN) != 0 {
			why = "that process is gone" // Linux 5.10 does not say ESRCH of a zombie
		}
	case errors.Is(err, unix.EMFILE):
		why = "this process has as many descriptors as RLIMIT_NOFILE lets it have (ulimit -n)"
	}
	if why == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, why)
}

// denied says why this process may not fetch the target's descriptors. It asks what the kernel
// asks (ptrace(2), "Ptrace access mode checking", with PTRACE_MODE_ATTACH_REALCREDS).
func (t target) denied() string {
	// pidfd_open asks for no permission, and without a pidfd neither does pidfd_getfd: it says
	// EBADF. So EPERM here comes from before the call.
	if _, err := unix.PidfdGetfd(-1, 0, 0); t.pidfd < 0 || errors.Is(err, unix.EPERM) {
		return "a seccomp filter forbids this process the call, whatever the target: in a container, add the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE), or choose a seccomp profile that allows pidfd_open and pidfd_getfd"
	}
	own, ownErr := statusOf(os.Getpid())
	theirs, err := statusOf(t.pid)
	if err := errors.Join(err, ownErr, t.alive()); err != nil {
		return fmt.Sprintf("and why cannot be found out: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}

	var reasons []string
	otherNamespace := t.inAnotherUserNamespace()
	capable := !otherNamespace && own.effective&(1<<unix.CAP_SYS_PTRACE) != 0
	if !capable {
		reasons = t.unprivileged(own, theirs, otherNamespace)
	}
	switch mode := yama(); {
	case mode == 3:
		reasons = append(reasons, "Yama's ptrace_scope is 3: nobody may, until the next boot")
	case capable || len(reasons) > 0:
	case mode == 2:
		reasons = append(reasons, "Yama's ptrace_scope is 2: CAP_SYS_PTRACE is needed")
	case mode == 1:
		reasons = append(reasons, "Yama's ptrace_scope is 1, and this process is neither its ancestor nor the one it named with PR_SET_PTRACER")
	}
	if len(reasons) == 0 {
		return "a security module such as SELinux, AppArmor or Landlock forbids it, or it is in another user namespace with the same users"
	}
	return strings.Join(reasons, "; and ")
}

// unprivileged is why the target is out of reach for a process without CAP_SYS_PTRACE in the
// target's user namespace: one reason, or none.
func (t target) unprivileged(own, theirs status, otherNamespace bool) []string {
	switch {
	case otherNamespace:
		return []string{"it is in another user namespace, in which this process has no CAP_SYS_PTRACE: run both in the same one"}
	case !own.sameUserAs(theirs):
		return []string{fmt.Sprintf("it runs as %v, and this process as uid %d, gid %d without CAP_SYS_PTRACE: run both as the same user", theirs, own.uids[0], own.gids[0])}
	case theirs.permitted&^own.permitted != 0:
		return []string{fmt.Sprintf("it has capabilities that this process does not have (CapPrm %#x, here %#x): start both with the same ones", theirs.permitted, own.permitted)}
	case t.undumpable(theirs):
		return []string{"it is not dumpable (PR_SET_DUMPABLE, or it has changed its user): let it call prctl(PR_SET_DUMPABLE, 1)"}
	}
	return nil
}

// alive says whether what /proc/PID has said was about the target: while it lives, or nobody has
// waited for it, nobody else gets its pid.
func (t target) alive() error {
	err := unix.PidfdSendSignal(t.pidfd, 0, nil, 0)
	if errors.Is(err, unix.EPERM) {
		return nil // it could not be signalled, but it is there
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// inAnotherUserNamespace compares the mappings of users. Two namespaces can have the same one, but
// the links that would tell (/proc/PID/ns/user) are for those who are not denied anything.
func (t target) inAnotherUserNamespace() bool {
	own, ownErr := readText("/proc/self/uid_map")
	theirs, err := readText(fmt.Sprintf("/proc/%d/uid_map", t.pid))
	return err == nil && ownErr == nil && own != theirs
}

func readText(path string) (string, error) {
	text, err := os.ReadFile(path)
	return string(text), err
}

// undumpable reports whether the target's files in /proc are not its own, but root's, which is
// how proc_pid(5) shows it; or, as that says nothing about root's processes, whether the kernel
// does not even let us look.
func (t target) undumpable(theirs status) bool {
	var stat unix.Stat_t
	folder := fmt.Sprintf("/proc/%d", t.pid)
	if err := unix.Stat(folder+"/status", &stat); err == nil && int(stat.Uid) != theirs.uids[1] {
		return true
	}
	_, err := os.Readlink(folder + "/exe")
	return errors.Is(err, os.ErrPermission)
}

// yama returns the mode of the security module of that name, or 0 where there is none.
func yama() int {
	text, err := readText("/proc/sys/kernel/yama/ptrace_scope")
	if err != nil {
		return 0
	}
	mode, _ := strconv.Atoi(strings.TrimSpace(text)) // a number, says the kernel's documentation
	return mode
}

// status is what /proc/PID/status says of a process's credentials (proc_pid_status(5)).
type status struct {
	uids, gids           [4]int // real, effective, saved, and for files
	permitted, effective uint64 // capabilities
}

// sameUserAs reports whether the real user and group of s are other's: real, effective and saved.
func (s status) sameUserAs(other status) bool {
	for _, i := range []int{0, 1, 2} {
		if other.uids[i] != s.uids[0] || other.gids[i] != s.gids[0] {
			return false
		}
	}
	return true
}

func (s status) String() string {
	return fmt.Sprintf("uid %d, gid %d (real, effective and saved: %v, %v)", s.uids[0], s.gids[0], s.uids[:3], s.gids[:3])
}

func statusOf(pid int) (s status, err error) {
	text, err := readText(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return status{}, err
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "Uid":
			_, err = fmt.Sscan(value, &s.uids[0], &s.uids[1], &s.uids[2], &s.uids[3])
		case "Gid":
			_, err = fmt.Sscan(value, &s.gids[0], &s.gids[1], &s.gids[2], &s.gids[3])
		case "CapPrm":
			_, err = fmt.Sscanf(value, "%x", &s.permitted)
		case "CapEff":
			_, err = fmt.Sscanf(value, "%x", &s.effective)
		}
		if err != nil {
			return status{}, fmt.Errorf("/proc/%d/status: %s: %w", pid, key, err)
		}
	}
	return s, nil
}
