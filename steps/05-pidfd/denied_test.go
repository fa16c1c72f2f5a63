//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	roles["idle"] = func() error {
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
		return nil
	}
	roles["undumpable"] = func() error { // execve(2) would make it dumpable again
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return err
		}
		return roles["idle"]()
	}
	roles["look"] = func() error {
		pid, pidErr := strconv.Atoi(os.Args[1])
		fd, fdErr := strconv.Atoi(os.Args[2])
		if err := errors.Join(pidErr, fdErr); err != nil {
			return err
		}
		io.Copy(io.Discard, os.Stdin) // until it may begin
		return look(pid, fd)
	}
	roles["confined"] = func() error {
		runtime.LockOSThread() // it is this thread's, until execve(2) makes that the process
		if err := confinements[os.Getenv("TEST_CONFINE")](); err != nil {
			return err
		}
		os.Setenv("TEST_ROLE", os.Getenv("TEST_THEN"))
		return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
}

// confinements are ways for a process to be able to do less than others.
var confinements = map[string]func() error{
	// What execve(2) gives to root, it takes from the bounding set (capabilities(7)).
	"no CAP_SYS_PTRACE":     func() error { return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0) },
	"no pidfd_getfd":        func() error { return filter(unix.SYS_PIDFD_GETFD, -1, unix.EPERM) },
	"unknown pidfd_getfd":   func() error { return filter(unix.SYS_PIDFD_GETFD, -1, unix.ENOSYS) },
	"unknown SO_PEERPIDFD":  func() error { return filter(unix.SYS_GETSOCKOPT, unix.SO_PEERPIDFD, unix.ENOPROTOOPT) },
	"a Landlock of its own": landlock,
}

// filter makes a system call fail, if option is not negative only with that as third argument
// (seccomp(2)).
func filter(number, option int, with unix.Errno) error {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jump  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		third = 16 + 2*8 // where struct seccomp_data has it: its lower half, on little-endian machines
	)
	program := []unix.SockFilter{
		{Code: load, K: 0}, // the system call's number
		{Code: jump, K: uint32(number), Jf: 3},
		{Code: load, K: third},
		{Code: jump, K: uint32(option), Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(with)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	if option < 0 {
		program[2], program[3] = program[4], program[4]
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return errors.Join(
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0))
}

// landlock forbids what no test does. Whoever is in such a domain may not trace what is outside of
// it, whatever it forbids (landlock(7)).
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

// adjustment is what makes a process another one than this.
type adjustment func(*exec.Cmd)

func unconfined(*exec.Cmd) {}

func confined(how string) adjustment {
	return func(cmd *exec.Cmd) {
		for i, value := range cmd.Env {
			if role, found := strings.CutPrefix(value, "TEST_ROLE="); found {
				cmd.Env[i] = "TEST_ROLE=confined"
				cmd.Env = append(cmd.Env, "TEST_THEN="+role, "TEST_CONFINE="+how)
				return
			}
		}
	}
}

func nobody(cmd *exec.Cmd) {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}

// inUserNamespace is root in a user namespace of its own, and the same user as before outside.
func inUserNamespace(cmd *exec.Cmd) {
	id := func(id int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: id, Size: 1}} }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: id(os.Geteuid()), GidMappings: id(os.Getegid())}
}

// startIdle starts a process that waits.
func startIdle(t testing.TB, role string, adjust adjustment) *exec.Cmd {
	t.Helper()
	cmd := command(role)
	adjust(cmd)
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	out.(*os.File).SetReadDeadline(time.Now().Add(patience))
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%s: %q, %v", role, line, err)
	}
	return cmd
}

// lookFrom is what a process of that kind says of another one's descriptor. With named, this one
// names it with PR_SET_PTRACER first. It is skipped if the kernel knows no such process.
func lookFrom(t *testing.T, adjust adjustment, pid, fd int, named bool) string {
	t.Helper()
	cmd := command("look", strconv.Itoa(pid), strconv.Itoa(fd))
	adjust(cmd)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("start another process: %v", err) // no user namespaces, say
	}
	if named {
		unix.Prctl(unix.PR_SET_PTRACER, uintptr(cmd.Process.Pid), 0, 0, 0) // EINVAL without Yama
	}
	in.Close()
	cmd.Wait() // it fails if it may not look
	if strings.HasPrefix(out.String(), "landlock_") {
		t.Skip(out.String())
	}
	return out.String()
}

// yamaMode is Yama's ptrace_scope, and 0 without Yama: it allows the same.
func yamaMode() int {
	text, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err != nil {
		return 0
	}
	mode, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return mode
}

// Every way in which a descriptor may be out of reach, made to happen: the explanation names the
// cause.
func TestDenied(t *testing.T) {
	if yamaMode() == 3 {
		t.Skip("Yama's ptrace_scope is 3, and no other cause matters")
	}
	for name, d := range map[string]struct {
		root   bool // it takes root to become the target or the taker
		role   string
		target adjustment
		taker  adjustment
		why    string
	}{
		"another user":         {true, "idle", unconfined, nobody, "belongs to uid 0, and this process is uid 65534's without CAP_SYS_PTRACE: it is another user's"},
		"not dumpable":         {false, "undumpable", nobody, nobody, "or not dumpable (PR_SET_DUMPABLE"},
		"capabilities":         {true, "idle", unconfined, confined("no CAP_SYS_PTRACE"), "it has capabilities that this process lacks"},
		"user namespace":       {false, "idle", unconfined, inUserNamespace, "is in another user namespace"},
		"a container's filter": {false, "idle", unconfined, confined("no pidfd_getfd"), "a seccomp filter forbids the call"},
		"Landlock":             {false, "idle", unconfined, confined("a Landlock of its own"), "Landlock"},
		"an old kernel":        {false, "idle", unconfined, confined("unknown pidfd_getfd"), "function not implemented: it needs Linux 5.6"},
	} {
		t.Run(name, func(t *testing.T) {
			if d.root && os.Geteuid() != 0 {
				t.Skip("only root can become somebody else (setuid: EPERM)")
			}
			target := startIdle(t, d.role, d.target)
			said := lookFrom(t, d.taker, target.Process.Pid, 1, false)
			if !strings.HasPrefix(said, fmt.Sprintf("pidfd_getfd of pid %d, descriptor 1: ", target.Process.Pid)) ||
				!strings.Contains(said, d.why) || strings.Count(said, "\n") != 1 {
				t.Errorf("got %q, want one line with %q", said, d.why)
			}
		})
	}
}

// Of what /proc shows nothing is wrong, and the kernel says EPERM all the same: a security module. If
// Yama's mode cannot be read, the explanation says that too.
func TestSecurityModule(t *testing.T) {
	target := startIdle(t, "idle", unconfined)
	got := explain(target.Process.Pid, unix.EPERM).Error()
	want := fmt.Sprintf("Yama's ptrace_scope is %d", yamaMode())
	if yamaMode() == 0 {
		want = "a security module"
	}
	if !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := os.Stat("/proc/sys/kernel/yama/ptrace_scope"); err != nil && !strings.Contains(got, err.Error()[len("stat "):]) {
		t.Errorf("got %q, want that ptrace_scope cannot be read", got)
	}
}

// Which relatives may look into each other, in each of Yama's modes.
func TestRelations(t *testing.T) {
	child := startIdle(t, "idle", unconfined).Process.Pid
	taker := "any user"
	if os.Geteuid() == 0 {
		taker = "root with CAP_SYS_PTRACE"
	}
	for _, r := range []struct {
		name  string
		upTo  int // Yama's mode, without CAP_SYS_PTRACE
		named bool
		pid   int
	}{
		{"child -> parent", 0, false, os.Getpid()},
		{"child -> parent that named it", 1, true, os.Getpid()},
		{"sibling -> sibling", 0, false, child},
	} {
		said := lookFrom(t, unconfined, r.pid, 1, r.named)
		want, answer := "the same there and here (kcmp)", "yes"
		if mode := yamaMode(); mode == 3 || mode > r.upTo && os.Geteuid() != 0 {
			want, answer = fmt.Sprintf("operation not permitted: its user is no obstacle; Yama's ptrace_scope is %d", mode), "EPERM"
		}
		t.Logf("relation %s, %s: %s", taker, r.name, answer) // for docs/kernels.md
		if !strings.Contains(said, want) {
			t.Errorf("%s: got %q, want %q", r.name, said, want)
		}
	}
	unix.Prctl(unix.PR_SET_PTRACER, 0, 0, 0, 0)
	fd, err := fetchFrom(t, child, 1)
	answer := "yes"
	if mode := yamaMode(); mode == 3 || mode == 2 && os.Geteuid() != 0 {
		answer = "EPERM"
	}
	if err == nil {
		unix.Close(fd)
	}
	if (answer == "yes") != (err == nil) || err != nil && !errors.Is(err, unix.EPERM) {
		t.Errorf("parent -> child: %v, want %s", err, answer)
	}
	t.Logf("relation %s, parent -> child: %s", taker, answer)
}
