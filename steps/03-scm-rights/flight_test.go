//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel does with a descriptor between sendmsg(2) and recvmsg(2).

// sendmsg(2) looks the number up. What the number stands for afterwards changes nothing.
func TestNumberIsLookedUpWhenSent(t *testing.T) {
	sameAmount(t)
	b, two := testBench(t), files(t, 2)
	want := inode(t, two[0])
	err := errors.Join(
		sendFDs(t.Context(), b.from, []byte("the first"), two[0]),
		unix.Dup3(two[1], two[0], unix.O_CLOEXEC)) // closes the first, and reuses its number
	if err != nil {
		t.Fatal(err)
	}
	_, fds, err := receiveFDs(t.Context(), b.to, make([]byte, 16), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := inode(t, fds[0]); got != want || inode(t, two[0]) == want {
		t.Errorf("received inode %d, want %d; the number now stands for %d", got, want, inode(t, two[0]))
	}
	if err := closeFDs(fds); err != nil {
		t.Error(err)
	}
}

// After shutdown(2) nothing gets into a queue any more, and what was in it can still be read: so
// whoever reads its queue to the end then knows all that the other side will ever have said.
func TestShutdownKeepsWhatIsQueued(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	if err := errors.Join(sendFDs(t.Context(), b.from, []byte("in time")), b.to.Shutdown(unix.SHUT_RDWR)); err != nil {
		t.Fatal(err)
	}
	if err := sendFDs(t.Context(), b.from, []byte("too late")); !is(err, unix.EPIPE) {
		t.Errorf("sent after the shutdown: %v, want EPIPE", err)
	}
	record := make([]byte, 16)
	if n, _, err := receiveFDs(t.Context(), b.to, record, 0, 0); string(record[:n]) != "in time" || err != nil {
		t.Errorf("received %q, %v", record[:n], err)
	}
	if n, _, err := receiveFDs(t.Context(), b.to, record, 0, 0); !errors.Is(err, io.EOF) {
		t.Errorf("received %q, %v, want the end", record[:n], err)
	}
}

// recvmsg(2) takes the lowest free numbers of the receiver, whatever they were at the sender.
func TestLowestFreeNumbers(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	var taken [3]int
	for i := range taken {
		var err error
		if taken[i], err = unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	gaps := []int{taken[0], taken[2]} // and taken[1] between them stays taken
	err := errors.Join(closeFDs(gaps), sendFDs(t.Context(), b.from, []byte("two"), b.null, b.null))
	if err != nil {
		t.Fatal(err)
	}
	_, fds, err := receiveFDs(t.Context(), b.to, make([]byte, 16), 2, 2)
	if err != nil || !slices.Equal(fds, gaps) {
		t.Errorf("received %v, %v, want %v", fds, err, gaps)
	}
	if err := closeFDs(append(fds, taken[1])); err != nil {
		t.Error(err)
	}
}

// A descriptor in flight is open, and ends with the queue that it waits in.
func TestClosingTheReceiverDropsWhatWaits(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(sendFDs(t.Context(), b.from, []byte("pipe"), pipe[1]), closeFDs(pipe[1:]))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(pipe[0], make([]byte, 1)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("its last descriptor is in flight: read %d, %v, want EAGAIN", n, err)
	}
	if err := b.to.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(pipe[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the queue is gone: read %d, %v, want end-of-file", n, err)
	}
	if err := closeFDs(pipe[:1]); err != nil {
		t.Error(err)
	}
}

// A user's descriptors in flight, by whatever sockets, are limited by the soft RLIMIT_NOFILE of
// the one who sends. It is another process of a user of its own, who has no other in flight.
func TestTooManyInFlight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user: setuid: EPERM")
	}
	user := uint32(60_000 + os.Getpid()%1000)
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), asRole+"=flood", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EINVAL) {
		t.Skipf("this user namespace has no user %d: %v", user, err)
	}
	const want = `limit 20
by one socket: 21 sent, then too many references: cannot splice
by another: 0 sent, then too many references: cannot splice
one received: 1 sent, then too many references: cannot splice
the receiver closed: 21 sent, then too many references: cannot splice
the other closed too: 253 in one message: <nil>
`
	if err != nil || string(out) != want {
		t.Errorf("%v; got\n%swant\n%s", err, out, want)
	}
}

func init() {
	roles["flood"] = func() {
		if err := flood(20); err != nil {
			log.Fatal(err)
		}
	}
}

// flood sends descriptors that nobody receives, and prints how far it gets.
func flood(limit uint64) error {
	var limits unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limits); err != nil {
		return err
	}
	limits.Cur = limit // the soft one
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limits); err != nil {
		return err
	}
	fmt.Printf("limit %d\n", limit)
	one, err := pair()
	if err != nil {
		return err
	}
	other, err := pair()
	if err != nil {
		return err
	}
	fmt.Println("by one socket:", fill(one[0]))
	fmt.Println("by another:", fill(other[0]))
	if _, err := unix.Read(one[1], make([]byte, 1)); err != nil {
		return err
	}
	fmt.Println("one received:", fill(other[0]))
	if err := unix.Close(one[1]); err != nil {
		return err
	}
	fmt.Println("the receiver closed:", refill(other))
	if err := closeFDs(other[:]); err != nil {
		return err
	}
	last, err := pair()
	if err != nil {
		return err
	}
	// The kernel looks how many there are before it adds those of a message.
	err = unix.Sendmsg(last[0], []byte("x"), unix.UnixRights(make([]int, maxFDs)...), nil, 0)
	fmt.Printf("the other closed too: %d in one message: %v\n", maxFDs, err)
	return nil
}

func pair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
}

// fill sends until that fails.
func fill(socket int) string {
	for sent := 0; ; sent++ {
		if err := unix.Sendmsg(socket, []byte("x"), unix.UnixRights(0), nil, 0); err != nil {
			return fmt.Sprintf("%d sent, then %v", sent, err)
		}
	}
}

// refill empties a queue first.
func refill(p [2]int) string {
	for {
		if _, err := unix.Read(p[1], make([]byte, 1)); err != nil {
			return fill(p[0])
		}
	}
}
