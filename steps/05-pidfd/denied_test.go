//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// what explain says, where a test needs it more than once.
const (
	undumpableWhy = `it is not dumpable \(PR_SET_DUMPABLE, or it has changed its user\): let it call prctl\(PR_SET_DUMPABLE, 1\)$`
	filteredWhy   = `a seccomp filter forbids this process the call, whatever the target: in a container, add the capability SYS_PTRACE \(docker run --cap-add SYS_PTRACE\), or choose a seccomp profile that allows pidfd_open and pidfd_getfd$`
)

// Every way in which a descriptor may be out of reach, made to happen: the explanation names the
// cause, and no other.
func TestDenied(t *testing.T) {
	needsRoot(t)
	nobody := nobodys(t)
	for name, d := range map[string]struct {
		target, taker func(*exec.Cmd)
		why           string
	}{
		"another user": {
			unconfined, nobody,
			`it runs as uid 0, gid 0 \(real, effective and saved: \[0 0 0\], \[0 0 0\]\), and this process as uid 65534, gid 65534 without CAP_SYS_PTRACE: run both as the same user$`,
		},
		"not dumpable":             {adjusted(nobody, undumpable()), nobody, undumpableWhy},
		"not dumpable, and root's": {withoutPtrace(then + "=undumpable"), withoutPtrace(), undumpableWhy},
		"a container's filter":     {unconfined, failing(unix.SYS_PIDFD_GETFD, -1, unix.EPERM), filteredWhy},
		"root without CAP_SYS_PTRACE": {
			unconfined, withoutPtrace(),
			`it has capabilities that this process does not have \(CapPrm 0x[0-9a-f]+, here 0x[0-9a-f]+\): start both with the same ones$`,
		},
		"out of a user namespace": {
			unconfined, inUserNamespace(t),
			`it is in another user namespace, in which this process has no CAP_SYS_PTRACE: run both in the same one$`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := startWith(t, d.target, "-addr", "127.0.0.1:0", "-control", publicPlace(t))
			target.addr()
			if yama() == 3 && d.why != filteredWhy { // comes on top
				d.why = strings.TrimSuffix(d.why, `$`) + `; and Yama's ptrace_scope is 3: nobody may, until the next boot$`
			}
			taker := startWith(t, d.taker, "-pid", strconv.Itoa(target.pid()), "-fd", "2")
			taker.logged(fmt.Sprintf(`pidfd_getfd of pid %d, descriptor 2: operation not permitted: %s`, target.pid(), d.why))
			if status := taker.status(); status != 1 || len(taker.err.all(``)) != 1 {
				t.Errorf("exit status %d, want 1 and one line", status)
			}
		})
	}
}

// A filter on pidfd_open leaves nothing to ask the kernel about.
func TestDeniedOpen(t *testing.T) {
	taker := startWith(t, failing(unix.SYS_PIDFD_OPEN, -1, unix.EPERM), "-pid", strconv.Itoa(os.Getpid()), "-fd", "2")
	taker.logged(`pidfd_open of pid \d+: operation not permitted: ` + filteredWhy)
	if status := taker.status(); status != 1 || len(taker.err.all(``)) != 1 {
		t.Errorf("exit status %d, want 1 and one line", status)
	}
}

// publicPlace is a control path that every user may listen on.
func publicPlace(t testing.TB) string {
	t.Helper()
	path := meetingPlace(t)
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	return path
}

// Root may look into what is not dumpable, and into other users' processes.
func TestCapSysPtraceSuffices(t *testing.T) {
	mayCarry(t)
	needsRoot(t)
	target := startWith(t, adjusted(nobodys(t), undumpable()), "-addr", "127.0.0.1:0", "-control", publicPlace(t))
	target.addr()
	taker := start(t, "-pid", strconv.Itoa(target.pid()), "-fd", "2")
	taker.printed(`description: the same there and here \(kcmp\)$`)
	if status := taker.status(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// The client whose connection cannot be pulled reads why, and stays where it is.
func TestDeniedSteal(t *testing.T) {
	for name, d := range map[string]struct {
		new func(*exec.Cmd)
		why string
	}{
		"a container's filter": {
			failing(unix.SYS_PIDFD_GETFD, -1, unix.EPERM),
			`operation not permitted: ` + strings.TrimSuffix(strings.ReplaceAll(filteredWhy, `\`, ``), `$`),
		},
		"an old kernel": {
			failing(unix.SYS_PIDFD_GETFD, -1, unix.ENOSYS),
			`function not implemented: it needs Linux 5.6, and a container whose seccomp profile knows it`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := meetingPlace(t)
			old := startOld(t, path)
			c := dial(t, old.addr())
			c.echoed("hello")
			number := old.logged(`is descriptor (\d+),`)[1]
			new := startWith(t, d.new, "-c", "-control", path)
			new.logged(`waiting on `)
			c.send("STEAL\nnext\n")
			c.expect(fmt.Sprintf(`* not stolen: pid %d (uid %d, gid %d) refused: "pidfd_getfd of pid %d, descriptor %s: %s"`,
				new.pid(), os.Getuid(), os.Getgid(), old.pid(), number, d.why))
			c.expect("next")
		})
	}
}

// Out of descriptors, for the pidfd or for what it is to fetch.
func TestNoRoom(t *testing.T) {
	mayCarry(t)
	for more, what := range []string{`pidfd of pid \d+: getsockopt SO_PEERPIDFD|pidfd of pid \d+: pidfd_open`, `pidfd_getfd of pid \d+, descriptor \d+`} {
		path := meetingPlace(t)
		old := startOld(t, path)
		new := startNew(t, path)
		limitDescriptors(t, new, more)
		c := dial(t, old.addr())
		c.send("STEAL\nnext\n")
		old.logged(`not stolen: .* refused: "(` + what + `): too many open files: this process has as many descriptors as RLIMIT_NOFILE lets it have \(ulimit -n\)"$`)
		if got := c.line(); !strings.HasPrefix(got, "* not stolen: ") {
			t.Errorf("got %q, want why it was not stolen", got)
		}
		c.expect("next")
	}
}

// limitDescriptors leaves a process with room for so many more.
func limitDescriptors(t *testing.T, p *process, more int) {
	t.Helper()
	open := p.descriptors()
	limit := 0
	for free := 0; free <= more; limit++ {
		if open[strconv.Itoa(limit)] == "" {
			free++
		}
	}
	limit-- // the last free one is not to be had
	if err := unix.Prlimit(p.pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(limit), Max: uint64(limit)}, nil); err != nil {
		t.Fatal(err)
	}
}

// Processes that are not there, or not any more, and numbers that mean nothing.
func TestNothingThere(t *testing.T) {
	zombie := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := zombie.Wait(); err != nil {
			t.Error(err)
		}
	}()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, zombie.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	mayCarry(t)
	// Yama lets a parent look into its child, and nobody else into it.
	const gone = `(no such process|bad file descriptor): that process is gone$`
	if err := look(zombie.Process.Pid, 0, io.Discard); err == nil || !regexp.MustCompile(gone).MatchString(err.Error()) {
		t.Errorf("a zombie: %v", err)
	}
	setPtracer(-1) // PR_SET_PTRACER_ANY
	defer setPtracer(0)
	for _, look := range []struct {
		pid, fd int
		why     string
	}{
		{1 << 22, 0, `pidfd_open of pid 4194304: no such process: that process is gone$`}, // PID_MAX_LIMIT
		{os.Getpid(), 1 << 20, `pidfd_getfd of pid \d+, descriptor 1048576: bad file descriptor: that process has no such descriptor$`},
	} {
		p := start(t, "-pid", strconv.Itoa(look.pid), "-fd", strconv.Itoa(look.fd))
		p.logged(look.why)
		if status := p.status(); status != 1 || len(p.err.all(``)) != 1 {
			t.Errorf("exit status %d, want 1 and one line", status)
		}
	}
}

// Where Yama is, its mode decides, and the explanation says so.
func TestYama(t *testing.T) {
	const setting = "/proc/sys/kernel/yama/ptrace_scope"
	if _, err := os.Stat(setting); err != nil {
		t.Skipf("this kernel has no Yama: %v", err)
	}
	taker := unconfined
	if os.Geteuid() == 0 {
		taker = withoutPtrace()
	}
	target := startWith(t, taker, "-addr", "127.0.0.1:0", "-control", meetingPlace(t))
	target.addr()
	look := startWith(t, taker, "-pid", strconv.Itoa(target.pid()), "-fd", "2")
	switch yama() {
	case 0:
		look.printed(`the same there and here`)
	case 1:
		look.logged(`operation not permitted: Yama's ptrace_scope is 1, and this process is neither its ancestor nor the one it named with PR_SET_PTRACER$`)
	case 2:
		look.logged(`operation not permitted: Yama's ptrace_scope is 2: CAP_SYS_PTRACE is needed$`)
	case 3:
		look.logged(`operation not permitted: Yama's ptrace_scope is 3: nobody may, until the next boot$`)
	}
}
