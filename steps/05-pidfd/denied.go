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
	// EBADF. So EPERM here comes from before the call. (A filter over there does not matter:
	// it is for what the target calls.)
	if _, err := unix.PidfdGetfd(-1, 0, 0); t.pidfd < 0 || errors.Is(err, unix.EPERM) {
		return "a seccomp filter forbids this process the call, whatever the target: in a container, " + addCapability + ", or choose a seccomp profile that allows pidfd_open and pidfd_getfd"
	}
	own, ownErr := subjectOf("self") // not our pid: /proc may be another pid namespace's
	theirs, err := t.subject()
	if err := errors.Join(err, ownErr); err != nil {
		return fmt.Sprintf("and why cannot be found out: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return blame(own, theirs, yama())
}

const addCapability = "add the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE)"

// subject is what /proc shows of a process that the kernel would look at (proc_pid_status(5)).
type subject struct {
	uids, gids           [4]int // real, effective, saved, and for files
	permitted, effective uint64 // capabilities
	owner                int    // of its files in /proc: another than itself, if it is not dumpable
	users                string // that its user namespace has (uid_map)
	namespace            string // its user namespace, if it is readable
	readable             bool   // for this process, by the same rules (PTRACE_MODE_READ), but for Yama's
}

// blame says why own may not trace theirs.
func blame(own, theirs subject, yama int) string {
	// Capabilities count in their own user namespace and in those below. So if another one is
	// readable, it is below.
	below := theirs.readable && theirs.namespace != own.namespace
	above := !theirs.readable && theirs.users != own.users
	capable := below || !above && own.effective&(1<<unix.CAP_SYS_PTRACE) != 0

	var reasons []string
	add := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	switch {
	case above:
		add("it is in another user namespace, in which this process has no CAP_SYS_PTRACE: run both in the same one")
	case !capable && !own.sameUserAs(theirs):
		add("it runs as %v, and this process as uid %d, gid %d without CAP_SYS_PTRACE: run both as the same user, or %s", theirs, own.uids[0], own.gids[0], addCapability)
	case !capable && theirs.permitted&^own.permitted != 0:
		add("it has capabilities that this process does not have (CapPrm %#x, here %#x): start both with the same ones, or %s", theirs.permitted, own.permitted, addCapability)
	case !capable && theirs.owner != theirs.uids[1]:
		add("it is %s", notDumpable)
	case !theirs.readable:
		add("%s", theirs.hidden(capable))
	}
	switch {
	case yama == 3:
		add("Yama's ptrace_scope is 3: nobody may, until the next boot")
	case capable || len(reasons) > 0:
	case yama == 2:
		add("Yama's ptrace_scope is 2: CAP_SYS_PTRACE is needed")
	case yama == 1:
		add("Yama's ptrace_scope is 1, and this process is neither its ancestor nor the one it named with PR_SET_PTRACER")
	}
	if len(reasons) == 0 {
		return securityModule
	}
	return strings.Join(reasons, "; and ")
}

const (
	notDumpable    = "not dumpable (PR_SET_DUMPABLE, or it has changed its user): let it call prctl(PR_SET_DUMPABLE, 1)"
	securityModule = "a security module such as SELinux, AppArmor or Landlock forbids it"
)

// hidden is what there may be against a process when nothing that can be seen is.
func (s subject) hidden(toCapable bool) string {
	maybe := ""
	if s.uids[1] == 0 && !toCapable { // of root's processes the owner says nothing
		maybe = "it is " + notDumpable + "; or "
	}
	return maybe + "it is in another user namespace that has the same users, which only /proc/PID/ns/user would tell, and that cannot be read: run both in the same one; or " + securityModule
}

// subject looks at the target in /proc. What stands there under its pid was about the target if
// it is still there afterwards: a pid is not given to another before its process is gone.
func (t target) subject() (subject, error) {
	pid, err := t.procPID()
	if err != nil {
		return subject{}, err
	}
	if pid == 0 {
		return subject{}, errors.New("it is in a pid namespace that /proc does not show: ask from where both are seen")
	}
	s, err := subjectOf(strconv.Itoa(pid))
	_, gone := t.procPID()
	return s, errors.Join(err, gone)
}

// procPID is the target's pid in /proc, which may be that of another pid namespace than ours, or 0
// if it is not in there. Its error is ESRCH if the target is gone, and somebody has waited for it.
func (t target) procPID() (pid int, err error) {
	text, err := readText(fmt.Sprintf("/proc/self/fdinfo/%d", t.pidfd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if _, err := fmt.Sscanf(line, "Pid: %d", &pid); err != nil {
			continue
		}
		if pid == -1 {
			return 0, unix.ESRCH
		}
		return pid, nil
	}
	return 0, fmt.Errorf("descriptor %d is no pidfd", t.pidfd)
}

// subjectOf looks at the process of that name in /proc.
func subjectOf(name string) (s subject, err error) {
	folder := "/proc/" + name
	var stat unix.Stat_t
	if err := unix.Stat(folder+"/status", &stat); err != nil {
		return subject{}, &os.PathError{Op: "stat", Path: folder + "/status", Err: err}
	}
	s.owner = int(stat.Uid)
	text, err := readText(folder + "/status")
	if err != nil {
		return subject{}, err
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
			return subject{}, fmt.Errorf("%s/status: %s: %w", folder, key, err)
		}
	}
	// A kernel without user namespaces has neither of these.
	s.namespace, err = os.Readlink(folder + "/ns/user")
	s.readable = !errors.Is(err, os.ErrPermission)
	s.users, err = readText(folder + "/uid_map")
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return s, err
}

func readText(path string) (string, error) {
	text, err := os.ReadFile(path)
	return string(text), err
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

// sameUserAs reports whether the real user and group of s are other's: real, effective and saved.
func (s subject) sameUserAs(other subject) bool {
	for _, i := range []int{0, 1, 2} {
		if other.uids[i] != s.uids[0] || other.gids[i] != s.gids[0] {
			return false
		}
	}
	return true
}

func (s subject) String() string {
	return fmt.Sprintf("uid %d, gid %d (real, effective and saved: %v, %v)", s.uids[0], s.gids[0], s.uids[:3], s.gids[:3])
}
