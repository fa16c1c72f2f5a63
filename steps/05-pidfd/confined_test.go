//go:build linux

package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Processes of this program that may do less than others: the step, after one of these.
const (
	confine = "STEP_TEST_CONFINE"
	then    = "STEP_TEST_THEN" // the role to play after that; none is the step
	nr      = "STEP_TEST_FILTER_NR"
	option  = "STEP_TEST_FILTER_OPTION"
	errno   = "STEP_TEST_FILTER_ERRNO"
)

func init() {
	roles["confined"] = func() {
		runtime.LockOSThread() // all of it is of the thread, until execve(2) makes that the process
		if err := confinements[os.Getenv(confine)](); err != nil {
			log.Fatal(err)
		}
		next := os.Getenv(then)
		if err := os.Setenv(asRole, next); err != nil {
			log.Fatal(err)
		}
		if next == "" {
			if err := os.Setenv(asStep, "1"); err != nil {
				log.Fatal(err)
			}
		}
		log.Fatal(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	roles["undumpable"] = func() { // execve(2) would make it dumpable again, so it is the step itself
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			log.Fatal(err)
		}
		os.Exit(command(run))
	}
}

var confinements = map[string]func() error{
	// What execve(2) gives to root, it takes from the bounding set (capabilities(7)).
	"without CAP_SYS_PTRACE": func() error { return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0) },
	"filtered":               filter,
	"landlocked":             landlock,
	"with its own /proc, without CAP_SYS_PTRACE": func() error {
		return errorOf(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), // or everybody would get it
			unix.Mount("proc", "/proc", "proc", 0, ""),
			unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0))
	},
}

// landlock forbids what no test does. Whoever is in such a domain may not trace what is outside,
// whatever it forbids (landlock(7)).
func landlock() error {
	rules := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), 8, 0) // older kernels know the first field only
	if errno != 0 {
		return os.NewSyscallError("landlock_create_ruleset", errno)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return os.NewSyscallError("landlock_restrict_self", errno)
	}
	return unix.Close(int(fd))
}

// filter has a system call fail with an errno; if option is not negative, only when its third
// argument is that (seccomp(2)).
func filter() error {
	var numbers [3]int
	for i, name := range []string{nr, option, errno} {
		n, err := strconv.Atoi(os.Getenv(name))
		if err != nil {
			return err
		}
		numbers[i] = n
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jump   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K
		third  = 16 + 2*8 // where struct seccomp_data has it; its lower half, on little-endian machines
	)
	program := []unix.SockFilter{
		{Code: load, K: 0}, // the system call's number
		{Code: jump, K: uint32(numbers[0]), Jf: 3},
		{Code: load, K: third},
		{Code: jump, K: uint32(numbers[1]), Jf: 1},
		{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(numbers[2])},
		{Code: result, K: unix.SECCOMP_RET_ALLOW},
	}
	if numbers[1] < 0 {
		program[2], program[3] = program[4], program[4]
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return os.NewSyscallError("prctl PR_SET_SECCOMP", unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0))
}

// unconfined is a process like this one.
func unconfined(*exec.Cmd) {}

// adjusted applies several adjustments to a command.
func adjusted(all ...func(*exec.Cmd)) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		for _, adjust := range all {
			adjust(cmd)
		}
	}
}

// inRole has a command play a role instead of the step.
func inRole(role string, env ...string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Env = append(append(cmd.Env, asStep+"=", asRole+"="+role), env...) }
}

// withoutPtrace is root without the right to trace every process.
func withoutPtrace(more ...string) func(*exec.Cmd) {
	return inRole("confined", append(more, confine+"=without CAP_SYS_PTRACE")...)
}

// undumpable does not want to be looked into (PR_SET_DUMPABLE).
func undumpable() func(*exec.Cmd) { return inRole("undumpable") }

// failing has a system call fail in the step. option -1 stands for every third argument.
func failing(number, onlyOption int, with unix.Errno) func(*exec.Cmd) {
	return inRole("confined", confine+"=filtered", fmt.Sprintf("%s=%d", nr, number), fmt.Sprintf("%s=%d", option, onlyOption), fmt.Sprintf("%s=%d", errno, with))
}

// landlocked is in a Landlock domain.
func landlocked(t testing.TB) func(*exec.Cmd) {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 {
		t.Skipf("landlock_create_ruleset: %v", errno)
	}
	return inRole("confined", confine+"=landlocked")
}

// ofOneUser is root in a user namespace of its own that has no other user, and nobody outside
// (user_namespaces(7)).
func ofOneUser(t testing.TB) func(*exec.Cmd) {
	t.Helper()
	return inUserNamespace(t, syscall.SysProcIDMap{ContainerID: 0, HostID: os.Geteuid(), Size: 1})
}

// ofAllUsers is the same, with all the users that there are here.
func ofAllUsers(t testing.TB) func(*exec.Cmd) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	var users syscall.SysProcIDMap
	outside := 0 // of here; over there they have the same numbers as here
	if _, err := fmt.Sscan(string(text), &users.ContainerID, &outside, &users.Size); err != nil {
		t.Skipf("a user namespace with the users %q: %v", text, err) // more than an int holds, on 32 bits
	}
	users.HostID = users.ContainerID
	return inUserNamespace(t, users)
}

func inUserNamespace(t testing.TB, users syscall.SysProcIDMap) func(*exec.Cmd) {
	t.Helper()
	id := []syscall.SysProcIDMap{users}
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: id, GidMappings: id}
	probe(t, "a user namespace", attr)
	return func(cmd *exec.Cmd) { cmd.SysProcAttr = attr }
}

// inPidNamespace is the first process in a pid namespace of its own, with mounts of its own, and
// with the /proc of before, which shows both.
func inPidNamespace(t testing.TB, adjust func(*exec.Cmd)) func(*exec.Cmd) {
	t.Helper()
	const flags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	probe(t, "a pid namespace", &syscall.SysProcAttr{Cloneflags: flags})
	return func(cmd *exec.Cmd) {
		adjust(cmd)
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Cloneflags |= flags
	}
}

// probe skips a test that needs a process which cannot be made here.
func probe(t testing.TB, what string, attr *syscall.SysProcAttr) {
	t.Helper()
	probe := exec.Command("/proc/self/exe", "-test.run=^$")
	probe.SysProcAttr = attr
	if err := probe.Run(); err != nil {
		t.Skipf("%s: %v", what, err)
	}
}

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else: setuid: EPERM")
	}
}

// kernel is the running kernel's version.
func kernel(t testing.TB) (major, minor int) {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major, minor
}
