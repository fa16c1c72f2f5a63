//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func long() bool { return os.Getenv("STEAL_LONG") != "" }

// roles are what this test binary does where a test starts it as another process, with a socket as
// descriptor 3.
var roles = map[string]func() error{
	"send and die": func() error {
		var p [2]int
		if err := unix.Pipe(p[:]); err != nil {
			return err
		}
		unix.Write(p[1], []byte("x"))
		if err := unix.Sendmsg(3, []byte("pipe"), unix.UnixRights(p[0]), nil, 0); err != nil {
			return err
		}
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	},
	"flood": flood,
}

func TestMain(m *testing.M) {
	role, found := roles[os.Getenv("TEST_ROLE")]
	if !found {
		os.Exit(m.Run())
	}
	if err := role(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func command(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TEST_ROLE="+role, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func rawPair(t *testing.T, kind int) [2]int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds
}

// pair is two ends of a control connection, which give up when the test's patience has ended.
func pair(t *testing.T) (from, to *socket.Conn) {
	t.Helper()
	fds := rawPair(t, unix.SOCK_SEQPACKET)
	from, fromErr := socket.New(fds[0], "from")
	to, toErr := socket.New(fds[1], "to")
	end := time.Now().Add(patience)
	if err := errors.Join(fromErr, toErr, from.SetDeadline(end), to.SetDeadline(end)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close(); to.Close() })
	return from, to
}

func openFDs(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// noLeak expects as many open descriptors at the end of the test as there are now. What the test
// opens it closes, with a Cleanup registered after this one.
func noLeak(t *testing.T) {
	t.Helper()
	r, w, err := os.Pipe() // what Go's runtime opens once, for epoll, it opens now
	if err := errors.Join(err, r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	t.Cleanup(func() {
		if now := openFDs(t); now != before {
			t.Errorf("%d descriptors are open, want %d", now, before)
		}
	})
}

// files are n empty files, each with its offset at its index.
func files(t *testing.T, n int) (fds []int) {
	t.Helper()
	for i := range n {
		fd, err := unix.MemfdCreate("test", 0) // not close-on-exec: that must not matter
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if _, err := unix.Seek(fd, int64(i), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func closesOnExec(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC != 0
}

func sends(t *testing.T, c *socket.Conn, payload string, fds ...int) {
	t.Helper()
	if err := sendFDs(c, []byte(payload), fds...); err != nil {
		t.Fatal(err)
	}
}

// receives expects a record with these files, and closes what came.
func receives(t *testing.T, c *socket.Conn, want string, files ...int) {
	t.Helper()
	payload := make([]byte, 64)
	n, fds, err := receiveFDs(c, payload, len(files), len(files))
	defer closeFDs(fds)
	if err != nil || string(payload[:n]) != want || len(fds) != len(files) {
		t.Fatalf("received %q, %d descriptors, %v; want %q and %d", payload[:n], len(fds), err, want, len(files))
	}
	for i, fd := range fds {
		if inode(t, fd) != inode(t, files[i]) {
			t.Errorf("descriptor %d of %d is another file", i, len(fds))
		}
		if !closesOnExec(fd) {
			t.Errorf("descriptor %d of %d is not close-on-exec", i, len(fds))
		}
	}
}

func isAtEnd(t *testing.T, c *socket.Conn) {
	t.Helper()
	if n, fds, err := receiveFDs(c, make([]byte, 64), 0, 0); !errors.Is(err, io.EOF) || n != 0 || fds != nil {
		t.Errorf("received %d bytes, %v, %v, want io.EOF", n, fds, err)
	}
}

// Descriptors arrive in order, up to 253 of them, and each for the same open file description.
func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 252, 253} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			noLeak(t)
			from, to := pair(t)
			sent := files(t, n)
			sends(t, from, "payload", sent...)
			receives(t, to, "payload", sent...)
			sends(t, from, "again", sent...)
			_, fds, err := receiveFDs(to, make([]byte, 5), n, n)
			if err != nil {
				t.Fatal(err)
			}
			defer closeFDs(fds)
			for i, fd := range fds {
				unix.Seek(fd, 1000, io.SeekCurrent)
				if offset, err := unix.Seek(sent[i], 0, io.SeekCurrent); offset != int64(1000+i) || err != nil {
					t.Errorf("descriptor %d of %d: the sender's offset is %d, %v", i, n, offset, err)
				}
			}
		})
	}
}

func TestSendRefuses(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	null := files(t, 1)[0]
	for _, fds := range [][]int{nil, {null}} {
		if err := sendFDs(from, nil, fds...); err == nil {
			t.Errorf("an empty record with %d descriptors was sent", len(fds))
		}
	}
	for _, refused := range []struct {
		payload int
		fds     []int
		want    unix.Errno
	}{
		{1, slices.Repeat([]int{null}, 254), unix.EINVAL},
		{1, []int{-1}, unix.EBADF},
		{1, []int{null, 1 << 20}, unix.EBADF},
		{1 << 24, []int{null}, unix.EMSGSIZE},
	} {
		if err := sendFDs(from, make([]byte, refused.payload), refused.fds...); !errors.Is(err, refused.want) {
			t.Errorf("%d bytes, %d descriptors: %v, want %v", refused.payload, len(refused.fds), err, refused.want)
		}
	}
	sends(t, from, "the first")
	receives(t, to, "the first") // of the refused ones nothing was sent
	to.Close()
	if err := sendFDs(from, []byte("x"), null); !errors.Is(err, unix.EPIPE) {
		t.Errorf("nobody is there: %v, want EPIPE", err)
	}
}

// Neither side waits beyond its deadline, and nothing is lost by that.
func TestDeadlines(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	null := files(t, 1)[0]
	to.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, _, err := receiveFDs(to, make([]byte, 9), 0, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing is queued: %v", err)
	}
	to.SetReadDeadline(time.Now().Add(patience))
	from.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	queued := 0
	for ; ; queued++ {
		if err := sendFDs(from, []byte("record"), null); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
	}
	for range queued {
		receives(t, to, "record", null)
	}
	from.SetWriteDeadline(time.Now().Add(patience))
	sends(t, from, "next", null)
	receives(t, to, "next", null)
}

// kernelBefore says whether an option's absence proves nothing but the kernel's age.
func kernelBefore(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	var a, b int
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a < major || a == major && b < minor
}

// setOption skips the test where the kernel is too old for the option.
func setOption(t *testing.T, c *socket.Conn, option, value int) {
	t.Helper()
	since := map[int][2]int{unix.SO_PASSPIDFD: {6, 5}, unix.SO_PASSRIGHTS: {6, 16}}[option]
	err := c.SetsockoptInt(unix.SOL_SOCKET, option, value)
	if errors.Is(err, unix.ENOPROTOOPT) && kernelBefore(t, since[0], since[1]) {
		t.Skipf("option %d is there since Linux %d.%d: %v", option, since[0], since[1], err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Every way in which a record can be wrong closes what came, and leaves the next record alone.
func TestReceiveRefuses(t *testing.T) {
	for _, wrong := range []struct {
		name        string
		payload     string
		fds         int
		option      int // of the receiving socket
		least, most int
		why         string
	}{
		{"too long", strings.Repeat("x", 65), 2, 0, 2, 2, "MSG_TRUNC"},
		{"surplus", "x", 3, 0, 1, 2, "3 descriptors, not 1 to 2"},
		{"surplus, when none is due", "x", 1, 0, 0, 0, "1 descriptors, not 0 to 0"},
		{"missing", "x", 1, 0, 2, 3, "1 descriptors, not 2 to 3"},
		{"all missing", "x", 0, 0, 1, 1, "0 descriptors, not 1 to 1"},
		{"empty", "", 2, 0, 2, 2, "empty"},
		{"credentials", "x", 2, unix.SO_PASSCRED, 2, 2, "control message of type 2"},
		{"credentials alone", "x", 0, unix.SO_PASSCRED, 0, 0, "control message of type 2"},
		{"pidfd", "x", 2, unix.SO_PASSPIDFD, 2, 2, "bad record"},
		{"pidfd, counted", "x", 2, unix.SO_PASSPIDFD, 3, 3, "control message of type 4"},
		{"pidfd alone", "x", 0, unix.SO_PASSPIDFD, 0, 1, "control message of type 4"},
		{"pidfd, and 253", "x", 253, unix.SO_PASSPIDFD, 253, 254, "bad record"}, // no room for both
	} {
		t.Run(wrong.name, func(t *testing.T) {
			noLeak(t)
			from, to := pair(t)
			null := files(t, 1)[0]
			if wrong.option != 0 {
				setOption(t, to, wrong.option, 1)
			}
			if err := sendRaw(from, []byte(wrong.payload), rights(slices.Repeat([]int{null}, wrong.fds)...)); err != nil {
				t.Fatal(err)
			}
			before := openFDs(t)
			n, fds, err := receiveFDs(to, make([]byte, 64), wrong.least, wrong.most)
			if !errors.Is(err, errBadRecord) || !strings.Contains(err.Error(), wrong.why) || n != 0 || fds != nil {
				t.Errorf("received %d bytes, descriptors %v, %v; want that it is refused: %s", n, fds, err, wrong.why)
			}
			if now := openFDs(t); now != before {
				t.Errorf("%d descriptors have leaked", now-before)
			}
			if wrong.option != 0 {
				setOption(t, to, wrong.option, 0)
			}
			sends(t, from, "next", null)
			receives(t, to, "next", null)
		})
	}
}

// When the receiver has no number free, the kernel delivers what fits, reports only MSG_CTRUNC,
// and closes the rest.
func TestReceiveOutOfDescriptors(t *testing.T) {
	for free := range 3 {
		noLeak(t)
		from, to := pair(t)
		null := files(t, 1)[0]
		sends(t, from, "three", null, null, null)
		restore := leaveFree(t, free)
		_, fds, err := receiveFDs(to, make([]byte, 16), 0, 3)
		restore()
		if !errors.Is(err, errBadRecord) || !strings.Contains(err.Error(), "MSG_CTRUNC") || fds != nil {
			t.Errorf("%d free: got %v and %v", free, fds, err)
		}
		sends(t, from, "next", null)
		receives(t, to, "next", null)
	}
}

// leaveFree lowers this process's limit until only so many numbers are free.
func leaveFree(t *testing.T, free int) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	taken := lowest(t, free+1)
	closeFDs(taken)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(taken[free]), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}
}

// lowest opens the lowest free numbers.
func lowest(t *testing.T, n int) (fds []int) {
	t.Helper()
	for range n {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// recvmsg(2) takes the lowest free numbers of the receiver, whatever they were at the sender.
func TestLowestFreeNumbers(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	null := files(t, 1)[0]
	taken := lowest(t, 3)
	gaps := []int{taken[0], taken[2]}
	closeFDs(gaps)
	sends(t, from, "two", null, null)
	_, fds, err := receiveFDs(to, make([]byte, 16), 2, 2)
	if err != nil || !slices.Equal(fds, gaps) {
		t.Errorf("received %v, %v, want %v", fds, err, gaps)
	}
	closeFDs(append(fds, taken[1]))
}

// sendmsg(2) looks the number up. What becomes of it afterwards changes nothing: neither another
// file, nor close(2), nor the sender's death.
func TestNumberIsLookedUpWhenSent(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	two := files(t, 2)
	sends(t, from, "the first", two[0])
	keep, err := unix.Dup(two[0])
	if err := errors.Join(err, unix.Dup3(two[1], two[0], unix.O_CLOEXEC)); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(keep)
	receives(t, to, "the first", keep)
	sends(t, from, "closed", two[0])
	unix.Close(two[0])
	receives(t, to, "closed", two[1])
	two[0], _ = unix.Dup(keep) // for the Cleanup
}

func TestSenderMayDie(t *testing.T) {
	noLeak(t)
	fds := rawPair(t, unix.SOCK_SEQPACKET)
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	cmd := command("send and die")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if state := cmd.ProcessState; state == nil || state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("the sender was not killed: %v, %s", err, out)
	}
	to, err := socket.New(fds[0], "to")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	_, got, err := receiveFDs(to, make([]byte, 16), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFDs(got)
	if n, err := unix.Read(got[0], make([]byte, 16)); n != 1 || err != nil {
		t.Errorf("read %d, %v from what it sent", n, err)
	}
	isAtEnd(t, to)
}

// A descriptor in flight keeps a connection open, and ends with the queue that it waits in: the
// client then sees the end, or a reset if something was unread.
func TestClosingTheReceiverClosesWhatIsInFlight(t *testing.T) {
	for _, unread := range []string{"", "unread"} {
		t.Run(unread, func(t *testing.T) { closeReceiver(t, unread) })
	}
}

func closeReceiver(t *testing.T, unread string) {
	noLeak(t)
	from, to := pair(t)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	if err := borrow(server, func(fd int) error { return sendFDs(from, []byte("connection"), fd) }); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := io.WriteString(client, unread); err != nil {
		t.Fatal(err)
	}
	client.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("in flight it is open, and the client reads %d, %v", n, err)
	}
	client.SetReadDeadline(time.Now().Add(patience))
	to.Close()
	want := io.EOF
	if unread != "" {
		want = unix.ECONNRESET
	}
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, want) {
		t.Errorf("its queue is gone, and the client reads %d, %v, want %v", n, err, want)
	}
}

// A user's descriptors in flight are limited by the soft RLIMIT_NOFILE of the one who sends. Root is
// not; so that is another process, of a user who has no others in flight.
func TestTooManyInFlight(t *testing.T) {
	cmd := command("flood")
	want := "21 sent: too many references: cannot splice\none received: <nil>\n"
	if os.Geteuid() == 0 {
		user := uint32(60_000 + os.Getpid()%5000)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	} else {
		want = "too many references: cannot splice\n" // this user may have others in flight elsewhere
	}
	out, err := cmd.CombinedOutput()
	if os.Geteuid() == 0 && errors.Is(err, unix.EINVAL) {
		t.Skipf("this user namespace has no such user: %v", err)
	}
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v; got\n%swant\n%s", err, out, want)
	}
}

// flood sends descriptors that nobody receives, and prints how far it gets.
func flood() error {
	var limit unix.Rlimit
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(err, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)); err != nil {
		return err
	}
	limit.Cur = 20 // the soft one
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	for sent := 0; ; sent++ {
		if err := unix.Sendmsg(fds[0], []byte("x"), unix.UnixRights(0), nil, unix.MSG_DONTWAIT); err != nil {
			fmt.Printf("%d sent: %v\n", sent, err)
			break
		}
	}
	unix.Read(fds[1], make([]byte, 1)) // which closes it
	fmt.Println("one received:", unix.Sendmsg(fds[0], []byte("x"), unix.UnixRights(0), nil, unix.MSG_DONTWAIT))
	return nil
}

// A receiver that wants no descriptors can have the kernel say so to whoever sends some (6.16).
func TestReceiverWantsNone(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	null := files(t, 1)[0]
	setOption(t, to, unix.SO_PASSRIGHTS, 0)
	if err := sendFDs(from, []byte("refused"), null); !errors.Is(err, unix.EPERM) {
		t.Errorf("with a descriptor: %v, want EPERM", err)
	}
	sends(t, from, "words alone")
	receives(t, to, "words alone")
}

// When the other side has closed with something unread, ECONNRESET comes first, then what it had
// sent, then the end. The first is the kernel's, and receiveFDs does not pass it on.
func TestResetDoesNotHideWhatWasSent(t *testing.T) {
	noLeak(t)
	null := files(t, 1)[0]
	closeUnread := func() *socket.Conn {
		from, to := pair(t)
		sends(t, from, "one", null)
		sends(t, from, "two")
		sends(t, to, "never read")
		from.Close()
		return to
	}
	to := closeUnread()
	receives(t, to, "one", null)
	receives(t, to, "two")
	isAtEnd(t, to)

	var answers []string
	to = closeUnread()
	for range 4 {
		record := make([]byte, 16)
		n, err := to.Read(record)
		if errors.Is(err, unix.ECONNRESET) {
			err = unix.ECONNRESET
		}
		answers = append(answers, fmt.Sprintf("%s, %v", record[:n], err))
	}
	if want := []string{", connection reset by peer", "one, <nil>", "two, <nil>", ", EOF"}; !slices.Equal(answers, want) {
		t.Errorf("the kernel says %q, want %q", answers, want)
	}
}

// recvmsg(2) looks at the queue, then whether the other side is gone, and says 0 if a record came
// between. That is also what an empty record without descriptors looks like, which can be had at
// any time: receiveFDs asks once more, and finds the record.
func TestEndIsAskedForTwice(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	null := files(t, 1)[0]
	if err := sendRaw(from, nil, nil); err != nil {
		t.Fatal(err)
	}
	sends(t, from, "the last word", null)
	from.Close()
	receives(t, to, "the last word", null)
	isAtEnd(t, to)
}

// The same as it happens, once in some thousand rounds: a sender that ends while the receiver looks.
func TestEndRaces(t *testing.T) {
	noLeak(t)
	null := files(t, 1)[0]
	rounds := 300
	if long() {
		rounds = 30_000
	}
	for round := range rounds {
		fds := rawPair(t, unix.SOCK_SEQPACKET)
		to, err := socket.New(fds[1], "to")
		if err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 { // then the sender closes with something unread
			sends(t, to, "unread")
		}
		sent := make(chan error, 1)
		go func() {
			for range round % 50 {
				runtime.Gosched()
			}
			err := unix.Sendmsg(fds[0], []byte("the last word"), unix.UnixRights(null), nil, 0)
			sent <- errors.Join(err, unix.Close(fds[0]))
		}()
		receives(t, to, "the last word", null)
		isAtEnd(t, to)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		to.Close()
	}
}

// After shutdown(2) nothing gets into a queue any more, and what was in it can still be read: so
// whoever reads its queue to the end then knows all that the other side will ever have said.
func TestShutdownKeepsWhatIsQueued(t *testing.T) {
	noLeak(t)
	from, to := pair(t)
	null := files(t, 1)[0]
	sends(t, from, "in time", null)
	if err := to.Shutdown(unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := sendFDs(from, []byte("too late")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("sent after the shutdown: %v, want EPIPE", err)
	}
	receives(t, to, "in time", null)
	isAtEnd(t, to)
}

func unixConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "end")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// Why fdpass.go is not written with net.UnixConn, nor with socket.Conn's Recvmsg.
func TestOtherReceivers(t *testing.T) {
	noLeak(t)
	null := files(t, 1)[0]
	receive := func(to *net.UnixConn) (n int, fds []int, err error) {
		control := make([]byte, unix.CmsgSpace(4))
		n, controlLen, _, _, err := to.ReadMsgUnix(make([]byte, 8), control)
		fds, parseErr := parseControl(control[:controlLen])
		return n, fds, errors.Join(err, parseErr)
	}

	ends := rawPair(t, unix.SOCK_SEQPACKET)
	from, to := unixConn(t, ends[0]), unixConn(t, ends[1])
	if _, _, err := from.WriteMsgUnix([]byte("x"), unix.UnixRights(null), nil); err != nil {
		t.Fatal(err)
	}
	n, fds, err := receive(to)
	if n != 1 || len(fds) != 1 || err != nil || !closesOnExec(fds[0]) {
		t.Errorf("ReadMsgUnix: %d bytes, %v, %v, want a close-on-exec descriptor", n, fds, err)
	}
	closeFDs(fds)
	here, there := pair(t)
	if err := sendRaw(here, nil, rights(null)); err != nil {
		t.Fatal(err)
	}
	var duplicate int
	if err := borrow(there, func(fd int) (err error) { duplicate, err = unix.Dup(fd); return err }); err != nil {
		t.Fatal(err)
	}
	n, fds, err = receive(unixConn(t, duplicate))
	if n != 0 || len(fds) != 1 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadMsgUnix of an empty record: %d bytes, %v, %v, want io.EOF beside a descriptor", n, fds, err)
	}
	closeFDs(fds)

	ends = rawPair(t, unix.SOCK_STREAM)
	from, to = unixConn(t, ends[0]), unixConn(t, ends[1])
	if _, _, err := from.WriteMsgUnix(nil, unix.UnixRights(null), nil); err != nil {
		t.Fatal(err)
	}
	n, fds, err = receive(to)
	if n != 1 || len(fds) != 1 || err != nil {
		t.Errorf("on a stream: %d bytes, %v, %v, want the byte that WriteMsgUnix has added", n, fds, err)
	}
	closeFDs(fds)

	if err := sendRaw(here, nil, rights(null)); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	next := lowest(t, 1)
	closeFDs(next)
	_, controlLen, _, _, err := there.Recvmsg(context.Background(), make([]byte, 8), make([]byte, 64), unix.MSG_CMSG_CLOEXEC)
	if now := openFDs(t); controlLen != 0 || !errors.Is(err, io.EOF) || now != before+1 {
		t.Errorf("socket.Conn's Recvmsg of an empty record: %d bytes of control, %v, %d descriptors more", controlLen, err, now-before)
	}
	closeFDs(next)
}
