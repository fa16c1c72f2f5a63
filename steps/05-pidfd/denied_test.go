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
	undumpableWhy = `it is not dumpable \(PR_SET_DUMPABLE, or it has changed its user\): let it call prctl\(PR_SET_DUMPABLE, 1\)`
	hiddenWhy     = `it is in another user namespace that has the same users, which only /proc/PID/ns/user would tell, and that cannot be read: run both in the same one; or a security module such as SELinux, AppArmor or Landlock forbids it$`
	addWhy        = `add the capability SYS_PTRACE \(docker run --cap-add SYS_PTRACE\)$`
	filteredWhy   = `a seccomp filter forbids this process the call, whatever the target: in a container, add the capability SYS_PTRACE \(docker run --cap-add SYS_PTRACE\), or choose a seccomp profile that allows pidfd_open and pidfd_getfd$`
)

// Every way in which a descriptor may be out of reach, made to happen: the explanation names the
// cause, and no other.
func TestDenied(t *testing.T) {
	needsRoot(t)
	nobody := nobodys(t)
	as := func(adjust func(*exec.Cmd)) func(testing.TB) func(*exec.Cmd) {
		return func(testing.TB) func(*exec.Cmd) { return adjust }
	}
	for name, d := range map[string]struct {
		target func(*exec.Cmd)
		taker  func(testing.TB) func(*exec.Cmd) // skips, where there is no such thing
		why    string
	}{
		"another user": {
			unconfined, as(nobody),
			`it runs as uid 0, gid 0 \(real, effective and saved: \[0 0 0\], \[0 0 0\]\), and this process as uid 65534, gid 65534 without CAP_SYS_PTRACE: run both as the same user, or ` + addWhy,
		},
		"not dumpable":             {adjusted(nobody, undumpable()), as(nobody), undumpableWhy + `$`},
		"not dumpable, and root's": {withoutPtrace(then + "=undumpable"), as(withoutPtrace()), undumpableWhy + `; or ` + hiddenWhy},
		"a container's filter":     {unconfined, as(failing(unix.SYS_PIDFD_GETFD, -1, unix.EPERM)), filteredWhy},
		"root without CAP_SYS_PTRACE": {
			unconfined, as(withoutPtrace()),
			`it has capabilities that this process does not have \(CapPrm 0x[0-9a-f]+, here 0x[0-9a-f]+\): start both with the same ones, or ` + addWhy,
		},
		"out of a user namespace": {
			unconfined, ofOneUser,
			`it is in another user namespace, in which this process has no CAP_SYS_PTRACE: run both in the same one$`,
		},
		"out of a user namespace with the same users": {unconfined, ofAllUsers, hiddenWhy},
		"Landlock": {unconfined, landlocked, hiddenWhy},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			adjust := d.taker(t)
			target := startWith(t, d.target, "-addr", "127.0.0.1:0", "-control", publicPlace(t))
			target.addr()
			if yama() == 3 && d.why != filteredWhy { // comes on top
				d.why = strings.TrimSuffix(d.why, `$`) + `; and Yama's ptrace_scope is 3: nobody may, until the next boot$`
			}
			taker := startWith(t, adjust, "-pid", strconv.Itoa(target.pid()), "-fd", "2")
			taker.logged(fmt.Sprintf(`pidfd_getfd of pid %d, descriptor 2: operation not permitted: %s`, target.pid(), d.why))
			if status := taker.status(); status != 1 || len(taker.err.all(``)) != 1 {
				t.Errorf("exit status %d, want 1 and one line", status)
			}
		})
	}
}

// A new process in a pid namespace of its own does not see the old one's pid. SO_PEERPIDFD gives it
// all the same. What /proc says it finds by the pid that /proc has for it, if any.
func TestOtherPidNamespace(t *testing.T) {
	needsRoot(t)
	nobody := nobodys(t)
	for name, d := range map[string]struct {
		old, new func(*exec.Cmd)
		why      string // it may not, or nothing
	}{
		"may":     {unconfined, inPidNamespace(t, unconfined), ``},
		"may not": {adjusted(nobody, undumpable()), inPidNamespace(t, nobody), undumpableWhy},
		"may not, and /proc is its own": {
			unconfined, inPidNamespace(t, inRole("confined", confine+"=with its own /proc, without CAP_SYS_PTRACE")),
			`and why cannot be found out: it is in a pid namespace that /proc does not show: ask from where both are seen`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := publicPlace(t)
			old := startWith(t, d.old, "-addr", "127.0.0.1:0", "-control", path)
			c := dial(t, old.addr())
			new := startWith(t, d.new, "-c", "-control", path)
			if major, minor := kernel(t); major < 6 || major == 6 && minor < 5 {
				new.logged(`pidfd of pid 0: it is in a pid namespace that this process does not see, which takes SO_PEERPIDFD \(Linux 6\.5\)$`)
				return
			}
			new.logged(`waiting on `)
			c.send("STEAL\nnext\n")
			want := `^\* stolen: pid 0 -> pid 1$`
			if yama() == 3 {
				want = `^\* not stolen: .*Yama's ptrace_scope is 3`
			}
			if d.why != "" {
				want = `^\* not stolen: .* refused: "pidfd_getfd of pid 0, descriptor \d+: operation not permitted: ` + d.why
			}
			if got := c.line(); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("got %q, want %q", got, want)
			}
			c.expect("next")
		})
	}
}

// A filter binds the process that has it, and not what is done to it.
func TestFilterOfTheTarget(t *testing.T) {
	mayCarry(t)
	target := startWith(t, failing(unix.SYS_PIDFD_GETFD, -1, unix.EPERM), "-addr", "127.0.0.1:0", "-control", meetingPlace(t))
	target.addr()
	if err := look(target.pid(), 2, io.Discard); err != nil {
		t.Error(err)
	}
}

// The explanation for what /proc may show, without any of it being so.
func TestBlame(t *testing.T) {
	const all = 1<<41 - 1
	user := subject{uids: [4]int{1000, 1000, 1000, 1000}, gids: [4]int{1000, 1000, 1000, 1000}, owner: 1000, users: "all", namespace: "first", readable: true}
	root := subject{users: "all", permitted: all, effective: all, namespace: "first", readable: true}
	but := func(s subject, change func(*subject)) subject { change(&s); return s }
	hidden := func(s *subject) { s.readable, s.namespace = false, "" }
	for name, b := range map[string]struct {
		own, theirs subject
		yama        int
		want        string
	}{
		"nothing to be seen":           {user, user, 0, `^a security module such as`},
		"Yama 1":                       {user, user, 1, `^Yama's ptrace_scope is 1, and this process is neither its ancestor nor the one it named with PR_SET_PTRACER$`},
		"Yama 2":                       {user, user, 2, `^Yama's ptrace_scope is 2: CAP_SYS_PTRACE is needed$`},
		"Yama 3":                       {user, user, 3, `^Yama's ptrace_scope is 3: nobody may, until the next boot$`},
		"root, Yama 2":                 {root, user, 2, `^a security module such as`},
		"root, Yama 3":                 {root, user, 3, `^Yama's ptrace_scope is 3`},
		"another user, and Yama 1":     {user, but(root, hidden), 1, `^it runs as uid 0, [^;]*$`},
		"another group":                {user, but(user, func(s *subject) { s.gids[2] = 7; hidden(s) }), 0, `^it runs as .*\[1000 1000 1000\], \[1000 1000 7\]`},
		"setuid":                       {but(user, func(s *subject) { s.uids = [4]int{1000, 0, 0, 0} }), root, 0, `^it runs as uid 0.* and this process as uid 1000`},
		"more capabilities":            {user, but(user, func(s *subject) { s.permitted = 1; hidden(s) }), 0, `^it has capabilities .*0x1, here 0x0`},
		"permitted, and not effective": {but(root, func(s *subject) { s.effective = 0 }), user, 0, `^it runs as uid 1000`},
		"not dumpable":                 {user, but(user, func(s *subject) { s.owner = 0; hidden(s) }), 1, `^it is not dumpable [^;]*$`},
		"above, and Yama 3":            {root, but(root, func(s *subject) { s.users = "more"; hidden(s) }), 3, `^it is in another user namespace, .*; and Yama's ptrace_scope is 3`},
		"below, and readable":          {root, but(user, func(s *subject) { s.users, s.namespace = "few", "second" }), 2, `^a security module such as`},
		"the same users, unreadable":   {user, but(user, hidden), 1, `^it is in another user namespace that has the same users, .*; or a security module`},
		"root's, unreadable":           {but(root, func(s *subject) { s.effective = 0 }), but(root, hidden), 0, `^it is not dumpable .*; or it is in another .*; or a security module`},
	} {
		if got := blame(b.own, b.theirs, b.yama); !regexp.MustCompile(b.want).MatchString(got) {
			t.Errorf("%s: got %q, want %q", name, got, b.want)
		}
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

// Out of descriptors, for the pidfd or for what it is to fetch. (Before Linux 6.5 for a look at whose
// the pidfd is.)
func TestNoRoom(t *testing.T) {
	mayCarry(t)
	for more, what := range []string{`pidfd of pid \d+: getsockopt SO_PEERPIDFD|pidfd of pid \d+: pidfd_open`, `pidfd_getfd of pid \d+, descriptor \d+|pidfd of pid \d+: open /proc/self/fdinfo/\d+`} {
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
		{aThread(t), 0, `pidfd_open of pid \d+: (invalid argument|no such file or directory): that process is gone, or it is a thread of another$`},
		{os.Getpid(), 1 << 20, `pidfd_getfd of pid \d+, descriptor 1048576: bad file descriptor: that process has no such descriptor$`},
	} {
		p := start(t, "-pid", strconv.Itoa(look.pid), "-fd", strconv.Itoa(look.fd))
		p.logged(look.why)
		if status := p.status(); status != 1 || len(p.err.all(``)) != 1 {
			t.Errorf("exit status %d, want 1 and one line", status)
		}
	}
}

// aThread is the number of a thread of this process, and no pid.
func aThread(t *testing.T) int {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if tid, err := strconv.Atoi(thread.Name()); err == nil && tid != os.Getpid() {
			return tid
		}
	}
	t.Fatal("a Go program with one thread")
	return 0
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
