//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// What is different, in the tests of step 04, about a descriptor that is pulled.

// survivesInFlight: an offer holds nothing but a number, which dies with its sender.
const survivesInFlight = false

// carrying makes m name a descriptor of this process.
func carrying(m message, fd int) (message, []int) {
	m.FD = fd
	return m, nil
}

// lateAnswer is what the new process says to an offer that was withdrawn while it slept. The old
// one has hung up, so its pid proves nothing any more; and it has taken back what it had allowed.
func lateAnswer(t testing.TB) string {
	t.Helper()
	here, _ := controlPair(t)
	err := borrow(here, func(fd int) error {
		pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if err != nil {
			return err
		}
		return unix.Close(pidfd)
	})
	if errors.Is(err, unix.ENOPROTOOPT) || yama() == 1 && os.Geteuid() != 0 {
		return `"refused"`
	}
	return `"taken"`
}

// mayCarry skips a test where nobody like this process may fetch anything, whatever the other
// process allows: not even out of a child.
func mayCarry(t testing.TB) {
	t.Helper()
	answer, err := fetchFromChild()
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(answer, "EPERM Yama") {
		t.Skipf("pidfd_getfd of a child: %s", answer)
	}
}

var fetchFromChild = sync.OnceValues(func() (string, error) {
	return withChild(func(pid int) (string, error) { return attempt(pid, 0), nil })
})

// letPeerFetch is what the old process does for the new one.
func letPeerFetch(t *testing.T, p peer) {
	t.Helper()
	mayCarry(t)
	t.Cleanup(letFetch(p))
}

// carriageLies are offers of a live connection with something wrong in how it comes.
func carriageLies(cookie uint64, live int) []lie {
	number := func(n int) message { return message{Type: "offer", content: content{FD: n, Cookie: cookie}} }
	noSuch := func(n int) string {
		return fmt.Sprintf(`pidfd_getfd of pid %d, descriptor %d: bad file descriptor: that process has no such descriptor`, os.Getpid(), n)
	}
	return []lie{
		{"a descriptor that comes along", number(live), []int{live}, `more descriptors than expected: 1, not 0`},
		{"a number that means nothing", number(1 << 20), nil, noSuch(1 << 20)},
		{"a negative number", number(-1), nil, noSuch(-1)},
	}
}

// Without SO_PEERPIDFD the pid must do, and everything works all the same.
func TestOldKernelsWay(t *testing.T) {
	if runtime.GOARCH == "386" {
		t.Skip("x/sys calls socketcall(2) here, whose arguments a filter cannot see")
	}
	path := meetingPlace(t)
	old := startOld(t, path)
	new := startWith(t, failing(unix.SYS_GETSOCKOPT, unix.SO_PEERPIDFD, unix.ENOPROTOOPT), "-c", "-control", path)
	new.logged(`pidfd of pid \d+ by its pid \(pidfd_open\): SO_PEERPIDFD needs Linux 6\.5$`)
	c := dial(t, old.addr())
	c.send("STEAL\nnext\n")
	c.expect(stolenLine(old, new))
	c.expect("next")
	old.kill()
	new.logged(fmt.Sprintf(`pid %d (was killed|ended)`, old.pid()))
	c.echoed("and on")
}

// A pid whose process has ended may mean another one by now: here it means this test. The closed
// connection gives it away, and if that is open in somebody's hands, another user does.
func TestRecycledPid(t *testing.T) {
	here, there := controlPair(t)
	uid := os.Geteuid()
	pidfd, err := openConnected(os.Getpid(), uid, here)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(pidfd); err != nil {
		t.Fatal(err)
	}
	fails := func(pid, uid int, why string) {
		t.Helper()
		before := openHere(t)
		if _, err := openConnected(pid, uid, here); err == nil || err.Error() != why {
			t.Errorf("got %v, want that %s", err, why)
		}
		if after := openHere(t); after != before {
			t.Errorf("%d descriptors are open, and were %d", after, before)
		}
	}
	fails(os.Getpid(), uid+1, fmt.Sprintf("it runs as uid %d, and connected as uid %d: another process may have its pid by now", uid, uid+1))
	fails(0, uid, "it is in a pid namespace that this process does not see, which takes SO_PEERPIDFD (Linux 6.5)")
	if err := there.Close(); err != nil {
		t.Fatal(err)
	}
	fails(os.Getpid(), uid, "it has hung up")
}

// Where Yama is, the old process names the new one of its own user when they have said hello, and
// nobody when that has hung up. A filter that forbids it makes it say so.
func TestNamesTheNewProcess(t *testing.T) {
	path := meetingPlace(t)
	old := startWith(t, failing(unix.SYS_PRCTL, -1, unix.EPERM), "-addr", "127.0.0.1:0", "-control", path)
	old.addr()
	new := startNew(t, path)
	old.logged(fmt.Sprintf(`prctl PR_SET_PTRACER %d: operation not permitted$`, new.pid()))
	if cleared := old.err.all(`prctl PR_SET_PTRACER 0`); len(cleared) != 0 {
		t.Error("it has named nobody already")
	}
	new.kill()
	old.logged(`prctl PR_SET_PTRACER 0: operation not permitted$`)
}

// Root's process needs no leave.
func TestDoesNotNameAnotherUsers(t *testing.T) {
	path := publicPlace(t)
	old := startWith(t, adjusted(nobodys(t), failing(unix.SYS_PRCTL, -1, unix.EPERM)), "-addr", "127.0.0.1:0", "-control", path)
	old.addr()
	startNew(t, path)
	old.logged(`waits for connections`)
	if named := old.err.all(`PR_SET_PTRACER`); len(named) != 0 {
		t.Errorf("got %q", named)
	}
}

// A number means nothing when its process is gone, and the new process says so.
func TestOldDiesBeforeTheDescriptorIsFetched(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c := dial(t, old.addr())
	new := startWith(t, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, stopAt+`=received .{"type":"offer"`)
	}, "-v", "-c", "-control", path)
	new.logged(`waiting on `)
	c.send("STEAL\n")
	new.stopped()
	old.kill()
	new.signal(unix.SIGCONT)
	// Before Linux 6.5 there is no pidfd to be had of it any more.
	new.logged(fmt.Sprintf(`refused offer 1 of pid %d .*: (pidfd_getfd of pid \d+, descriptor \d+: no such process: that process is gone|pidfd of pid .*)$`, old.pid()))
	c.ended()
	if status := new.status(); status != 0 {
		t.Errorf("new: exit status %d, want 0", status)
	}
}

// openHere is how many descriptors this process has.
func openHere(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// What was pulled is no child's to inherit, although nobody said so.
func TestFetchedIsCloseOnExec(t *testing.T) {
	server, _ := serverSide(t)
	self := openSelf(t)
	fd, err := self.fetch(numberOf(t, server))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

// openSelf is this process as a target.
func openSelf(t *testing.T) target {
	t.Helper()
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	self := target{pidfd, os.Getpid()}
	t.Cleanup(func() {
		if err := self.Close(); err != nil {
			t.Error(err)
		}
	})
	return self
}

// A process that is stopped cannot send anything. Pulling does not need it, and what was pulled
// outlives it, with what waits in it.
func TestStoppedTarget(t *testing.T) {
	old := startOld(t, meetingPlace(t))
	c := dial(t, old.addr())
	c.echoed("hello")
	number, err := strconv.Atoi(old.logged(`is descriptor (\d+), inode`)[1])
	if err != nil {
		t.Fatal(err)
	}
	old.stop()
	c.send("while it sleeps")
	fd := duplicate(t, old, number)
	old.kill()
	conn, err := socket.New(fd, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := conn.Read(got)
	if string(got[:n]) != "while it sleeps" || err != nil {
		t.Errorf("got %q, %v", got[:n], err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	c.ended()
}

// An open /proc/PID can be signalled like a pidfd, but no descriptor can be taken through it.
func TestProcFolderIsNoPidfd(t *testing.T) {
	folder, err := unix.Open("/proc/self", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(folder) // the test's own
	if err := unix.PidfdSendSignal(folder, 0, nil, 0); err != nil {
		t.Errorf("signal 0: %v", err)
	}
	if _, err := unix.PidfdGetfd(folder, 0, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("pidfd_getfd: %v, want EBADF", err)
	}
}
