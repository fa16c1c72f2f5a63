//go:build linux

package main

// A descriptor out of another process: pidfd_getfd(2), and why it may be refused. To copy: this file,
// with golang.org/x/sys/unix.

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fetch duplicates a descriptor of another process into this one, close-on-exec, as dup(2) would
// within one. The other process is not asked, and does not notice. The caller closes it.
func fetch(pid, pidfd, number int) (int, error) {
	fd, err := unix.PidfdGetfd(pidfd, number, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd of pid %d, descriptor %d: %w", pid, number, explain(pid, err))
	}
	return fd, nil
}

// explain adds to an error of pidfd_open(2) or pidfd_getfd(2) what is behind it. Behind EPERM there are
// half a dozen reasons, and the kernel answers with a number.
func explain(pid int, err error) error {
	var why string
	switch {
	case errors.Is(err, unix.EPERM):
		why = denied(pid)
	case errors.Is(err, unix.EBADF):
		why = "it has no such descriptor" // or is a zombie: so says Linux 5.10
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		why = "there is no such process here"
	case errors.Is(err, unix.ENOSYS):
		why = "it needs Linux 5.6"
	case errors.Is(err, unix.EMFILE):
		why = "this process has no descriptor free (ulimit -n)"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, why)
}

// denied says why this process may not have the descriptors of pid: ptrace(2), "Ptrace access mode
// checking", with PTRACE_MODE_ATTACH_REALCREDS.
func denied(pid int) string {
	// Without a pidfd there is nothing to be forbidden: the kernel would say EBADF.
	if _, err := unix.PidfdGetfd(-1, 0, 0); errors.Is(err, unix.EPERM) {
		return "a seccomp filter forbids the call: in a container, docker run --cap-add SYS_PTRACE"
	}
	// To read a link in /proc/PID/ns takes PTRACE_MODE_READ_FSCREDS: the same user and capabilities
	// and a dumpable process, as here. But Yama is not asked.
	folder := fmt.Sprintf("/proc/%d", pid)
	if _, err := os.Readlink(folder + "/ns/user"); err == nil {
		return "its user is no obstacle; " + yama()
	}
	info, err := os.Stat(folder + "/ns")
	if err != nil {
		return err.Error()
	}
	uid := os.Geteuid()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != uid {
		// What is in /proc/PID belongs to its effective user, but to root if it is not dumpable (proc(5)).
		return fmt.Sprintf("%s belongs to uid %d, and this process is uid %d's without CAP_SYS_PTRACE: it is another user's, or not dumpable (PR_SET_DUMPABLE in prctl(2))", folder, stat.Uid, uid)
	}
	return "it has capabilities that this process lacks, is not dumpable, or is in another user namespace: start both the same way, or give this one CAP_SYS_PTRACE; or a security module such as Landlock, SELinux or AppArmor forbids it"
}

// yama says what the security module of that name has against it: proc_sys_kernel(5).
func yama() string {
	mode, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	switch strings.TrimSpace(string(mode)) {
	case "1":
		return "Yama's ptrace_scope is 1, and this process is neither its ancestor nor the one that it named with PR_SET_PTRACER"
	case "2":
		return "Yama's ptrace_scope is 2: this process needs CAP_SYS_PTRACE"
	case "3":
		return "Yama's ptrace_scope is 3: nobody may, until the next boot"
	}
	module := "a security module forbids it: SELinux, AppArmor, Landlock"
	if err != nil { // there is no Yama, or /proc does not show all: that is not to be told apart
		module += fmt.Sprintf(", or Yama, whose ptrace_scope cannot be read (%v)", err)
	}
	return module
}
