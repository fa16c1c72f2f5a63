//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func is(err error, errno unix.Errno) bool { return errors.Is(err, errno) }

func hexOf(b []byte) string { return fmt.Sprintf("% x", b) }

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func closesOnExec(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.FD_CLOEXEC != 0
}

// sameAmount expects as many open descriptors at the end of the test as there are now. What
// the test opens it closes, with a Cleanup registered after this one.
func sameAmount(t *testing.T) {
	t.Helper()
	// What Go's runtime opens once, for epoll, it opens now.
	r, w, err := os.Pipe()
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
func files(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	t.Cleanup(func() {
		if err := closeFDs(fds); err != nil {
			t.Error(err)
		}
	})
	for i := range n {
		fd, err := unix.MemfdCreate("test", 0) // not close-on-exec: that must not matter
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if _, err := unix.Seek(fd, int64(i), io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
	return fds
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 252, 253} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			sameAmount(t)
			b, sent := testBench(t), files(t, n)
			if err := sendFDs(t.Context(), b.from, []byte("payload"), sent...); err != nil {
				t.Fatal(err)
			}
			payload := make([]byte, 64)
			size, received, err := receiveFDs(t.Context(), b.to, payload, n, n)
			if err != nil || string(payload[:size]) != "payload" || len(received) != n {
				t.Fatalf("received %q, %d descriptors, %v", payload[:size], len(received), err)
			}
			for i, fd := range received {
				offset, err := unix.Seek(fd, 0, io.SeekCurrent)
				if err != nil || offset != int64(i) || inode(t, fd) != inode(t, sent[i]) {
					t.Errorf("descriptor %d of %d is another file: offset %d, %v", i, n, offset, err)
				}
				if !closesOnExec(t, fd) {
					t.Errorf("descriptor %d of %d is not close-on-exec", i, n)
				}
			}
			// The description is the same, not just the file: its offset moves for both.
			for i, fd := range received {
				if _, err := unix.Seek(fd, 1000, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				if offset, err := unix.Seek(sent[i], 0, io.SeekCurrent); err != nil || offset != 1000 {
					t.Errorf("descriptor %d of %d is another description: offset %d, %v", i, n, offset, err)
				}
			}
			if err := closeFDs(received); err != nil {
				t.Error(err)
			}
		})
	}
}

// A closed descriptor in flight is not lost: the kernel has a duplicate.
func TestSenderMayCloseAtOnce(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(pipe[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(sendFDs(t.Context(), b.from, []byte("pipe"), pipe[0]), closeFDs(pipe[:]), b.from.Close())
	if err != nil {
		t.Fatal(err)
	}
	_, fds, err := receiveFDs(t.Context(), b.to, make([]byte, 16), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fds[0], make([]byte, 16)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if err := closeFDs(fds); err != nil {
		t.Error(err)
	}
}

func TestSendRefuses(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	for _, refused := range []struct {
		payload string
		fds     int
		want    error
	}{{"", 0, errEmptyPayload}, {"", 1, errEmptyPayload}, {"x", maxFDs + 1, errTooManyFDs}} {
		err := sendFDs(t.Context(), b.from, []byte(refused.payload), slices.Repeat([]int{b.null}, refused.fds)...)
		if !errors.Is(err, refused.want) {
			t.Errorf("%q and %d descriptors: %v, want %v", refused.payload, refused.fds, err, refused.want)
		}
	}
	if err := sendFDs(t.Context(), b.from, []byte("x"), -1); !is(err, unix.EBADF) {
		t.Errorf("a number that is not open: %v", err)
	}
	if err := b.to.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sendFDs(t.Context(), b.from, []byte("x"), b.null); !is(err, unix.EPIPE) {
		t.Errorf("nobody is there: %v", err)
	}
}

// Every way in which a record can be wrong has its name, closes what came, and leaves the
// next record alone.
func TestReceiveRefuses(t *testing.T) {
	for _, wrong := range []struct {
		name        string
		payload     string
		fds         int
		option      int // of the receiving socket
		least, most int
		want        error
	}{
		{"long payload", strings.Repeat("x", 65), 2, 0, 2, 2, errPayloadTruncated},
		{"surplus", "x", 3, 0, 1, 2, errSurplusFDs},
		{"surplus, when none is due", "x", 1, 0, 0, 0, errSurplusFDs},
		{"missing", "x", 1, 0, 2, 3, errMissingFDs},
		{"all missing", "x", 0, 0, 1, 1, errMissingFDs},
		{"empty payload", "", 2, 0, 2, 2, errEmptyPayload},
		{"credentials", "x", 2, unix.SO_PASSCRED, 2, 2, errForeignControl},
		{"credentials alone", "x", 0, unix.SO_PASSCRED, 0, 0, errForeignControl},
		{"pidfd", "x", 2, unix.SO_PASSPIDFD, 2, 2, errForeignControl},
		{"pidfd, counted", "x", 2, unix.SO_PASSPIDFD, 3, 3, errForeignControl},
		{"pidfd alone", "x", 0, unix.SO_PASSPIDFD, 0, 0, errForeignControl},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			sameAmount(t)
			b := testBench(t)
			setOption(t, b, wrong.option, 1)
			control := rights(slices.Repeat([]int{b.null}, wrong.fds)...)
			if _, err := sendRaw(t.Context(), b.from, []byte(wrong.payload), control); err != nil {
				t.Fatal(err)
			}
			payload := make([]byte, 64)
			n, fds, err := receiveFDs(t.Context(), b.to, payload, wrong.least, wrong.most)
			if !errors.Is(err, wrong.want) || fds != nil {
				t.Errorf("got %v and descriptors %v, want %v and none", err, fds, wrong.want)
			}
			if want := wrong.payload[:min(len(wrong.payload), len(payload))]; string(payload[:n]) != want {
				t.Errorf("payload %q, want %q", payload[:n], want)
			}
			setOption(t, b, wrong.option, 0)
			onePasses(t, b)
		})
	}
}

func setOption(t *testing.T, b *bench, option, value int) {
	t.Helper()
	if option == 0 {
		return
	}
	err := b.to.SetsockoptInt(unix.SOL_SOCKET, option, value)
	skipBefore(t, option, err)
	if err != nil {
		t.Fatal(err)
	}
}

// skipBefore skips the test where the kernel is too old for an option. On a newer one that it is
// missing is a failure.
func skipBefore(t *testing.T, option int, err error) {
	t.Helper()
	if !is(err, unix.ENOPROTOOPT) {
		return
	}
	switch {
	case option == unix.SO_PASSPIDFD && kernelBefore(t, 6, 5):
		t.Skipf("SO_PASSPIDFD is there since Linux 6.5: %v", err)
	case option == unix.SO_PASSRIGHTS && kernelBefore(t, 6, 16):
		t.Skipf("SO_PASSRIGHTS is there since Linux 6.16: %v", err)
	}
}

func kernelBefore(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a < major || a == major && b < minor
}

// onePasses expects that a record of one descriptor gets through.
func onePasses(t *testing.T, b *bench) {
	t.Helper()
	if err := sendFDs(t.Context(), b.from, []byte("next"), b.null); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 16)
	n, fds, err := receiveFDs(t.Context(), b.to, payload, 1, 1)
	if err != nil || string(payload[:n]) != "next" || len(fds) != 1 {
		t.Errorf("received %q, %v, %v", payload[:n], fds, err)
	}
	if err := closeFDs(fds); err != nil {
		t.Error(err)
	}
}

// A receiver that never wants descriptors can have the kernel say so to whoever sends some, and
// needs to close none. What has been sent before still comes.
func TestReceiverWantsNone(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	if err := sendFDs(t.Context(), b.from, []byte("before"), b.null); err != nil {
		t.Fatal(err)
	}
	setOption(t, b, unix.SO_PASSRIGHTS, 0)
	if err := sendFDs(t.Context(), b.from, []byte("refused"), b.null); !is(err, unix.EPERM) {
		t.Errorf("with a descriptor: %v, want EPERM", err)
	}
	if err := sendFDs(t.Context(), b.from, []byte("words alone")); err != nil {
		t.Error(err)
	}
	payload := make([]byte, 16)
	for i, want := range []string{"before", "words alone"} {
		n, fds, err := receiveFDs(t.Context(), b.to, payload, 0, 1)
		if err != nil || string(payload[:n]) != want || len(fds) != 1-i {
			t.Errorf("received %q, %v, %v; want %q and %d", payload[:n], fds, err, want, 1-i)
		}
		if err := closeFDs(fds); err != nil {
			t.Error(err)
		}
	}
	setOption(t, b, unix.SO_PASSRIGHTS, 1)
	onePasses(t, b)
}

// Connections have from the start what their listener had: nobody can be quicker.
func TestListenerWantsNone(t *testing.T) {
	sameAmount(t)
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeFDs([]int{listener, client}); err != nil {
			t.Error(err)
		}
	})
	err = unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
	skipBefore(t, unix.SO_PASSRIGHTS, err)
	path := &unix.SockaddrUnix{Name: meetingPlace(t)}
	err = errors.Join(err, unix.Bind(listener, path), unix.Listen(listener, 1), unix.Connect(client, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(client, []byte("x"), unix.UnixRights(0), nil, 0); !is(err, unix.EPERM) {
		t.Errorf("before accept: %v, want EPERM", err)
	}
	accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(client, []byte("x"), unix.UnixRights(0), nil, 0); !is(err, unix.EPERM) {
		t.Errorf("after accept: %v, want EPERM", err)
	}
	if err := unix.Close(accepted); err != nil {
		t.Error(err)
	}
}

// Out of descriptors, the kernel delivers what fits: that is closed too.
func TestReceiveOutOfDescriptors(t *testing.T) {
	for free := range 3 {
		t.Run(fmt.Sprint(free), func(t *testing.T) {
			sameAmount(t)
			b := testBench(t)
			if err := sendFDs(t.Context(), b.from, []byte("three"), b.null, b.null, b.null); err != nil {
				t.Fatal(err)
			}
			restore := leaveFree(t, free)
			_, fds, err := receiveFDs(t.Context(), b.to, make([]byte, 16), 3, 3)
			restore()
			if !errors.Is(err, errControlTruncated) || fds != nil {
				t.Errorf("got %v and %v, want %v", err, fds, errControlTruncated)
			}
			onePasses(t, b)
		})
	}
}

// leaveFree lowers the limit until only so many numbers are free.
func leaveFree(t *testing.T, free int) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for range free + 1 {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0) // the lowest free number
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, fd)
	}
	low := unix.Rlimit{Cur: uint64(taken[free]), Max: old.Max}
	if err := errors.Join(closeFDs(taken), unix.Setrlimit(unix.RLIMIT_NOFILE, &low)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}
}

// When the other side has closed with something unread, ECONNRESET comes first, then what it
// had sent, then the end.
func TestResetDoesNotHideWhatWasSent(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	err := errors.Join(
		sendFDs(t.Context(), b.from, []byte("one"), b.null),
		sendFDs(t.Context(), b.from, []byte("two")),
		sendFDs(t.Context(), b.to, []byte("never read")),
		b.from.Close())
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 16)
	for i, want := range []string{"one", "two"} {
		n, fds, err := receiveFDs(t.Context(), b.to, payload, 0, 1)
		if err != nil || string(payload[:n]) != want || len(fds) != 1-i {
			t.Errorf("got %q, %d descriptors, %v; want %q", payload[:n], len(fds), err, want)
		}
		if err := closeFDs(fds); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := receiveFDs(t.Context(), b.to, payload, 0, 0); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want io.EOF", err)
	}
}

// recvmsg(2) looks at the queue, and then whether the other side is gone. If a record and then
// the end come between the two looks, it reports the end, although the record is queued.
// How often that happens is a matter of luck: on two processors, once in ten thousand rounds.
func TestEndIsReportedTooEarly(t *testing.T) {
	if testing.Short() || runtime.GOMAXPROCS(0) < 2 {
		t.Skip("this takes two processors, and up to 20 seconds")
	}
	var from, to int
	var begun, done, enough atomic.Int64
	go func() {
		for round := int64(1); ; round++ {
			for begun.Load() < round {
				if enough.Load() != 0 {
					return
				}
			}
			for wait := round % 200; wait > 0; wait-- {
				_ = begun.Load() // takes a moment
			}
			_, _ = unix.Write(from, []byte("x")) // if one of the two fails, so does round
			_ = unix.Shutdown(from, unix.SHUT_WR)
			done.Store(round)
		}
	}()
	defer enough.Store(1)
	round := func(n int64) (early bool) {
		p, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		from, to = p[0], p[1]
		begun.Store(n)
		var answers []int
		for len(answers) == 0 || answers[len(answers)-1] != 1 {
			size, _, _, _, err := unix.Recvmsg(to, make([]byte, 8), nil, 0)
			if err != nil && !is(err, unix.EAGAIN) {
				t.Fatal(err)
			}
			if err == nil {
				answers = append(answers, size)
			}
			if len(answers) > 2 {
				t.Fatalf("recvmsg returned %v, and never the record", answers)
			}
		}
		for done.Load() < n {
		}
		if err := closeFDs(p[:]); err != nil {
			t.Fatal(err)
		}
		return len(answers) == 2
	}
	begin, rounds := time.Now(), int64(1)
	for ; !round(rounds); rounds++ {
		if time.Since(begin) > 20*time.Second {
			t.Skipf("not in %d rounds: this kernel may be free of it, or the machine is too busy", rounds)
		}
	}
	t.Logf("round %d: 0 and then the record", rounds)
}

// To be told 0 with a record still queued is what an empty record without descriptors looks like,
// and that can be had at any time. receiveFDs asks once more, and finds the record.
func TestEndIsAskedForTwice(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	_, err := sendRaw(t.Context(), b.from, nil, nil)
	err = errors.Join(err, sendFDs(t.Context(), b.from, []byte("the last word"), b.null), b.from.Close())
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 16)
	n, fds, err := receiveFDs(t.Context(), b.to, payload, 1, 1)
	if err != nil || string(payload[:n]) != "the last word" {
		t.Errorf("received %q, %v", payload[:n], err)
	}
	if err := closeFDs(fds); err != nil {
		t.Error(err)
	}
	if _, _, err := receiveFDs(t.Context(), b.to, payload, 0, 0); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want io.EOF", err)
	}
}

func TestReceiveEndsWithContext(t *testing.T) {
	sameAmount(t)
	b := testBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, _, err := receiveFDs(ctx, b.to, make([]byte, 16), 0, 1)
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	onePasses(t, b)

	// Whichever comes first, the end of ctx or the record: it is received once, then or later.
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		sent := make(chan error)
		go func() { sent <- sendFDs(t.Context(), b.from, []byte("x"), b.null) }()
		_, fds, err := receiveFDs(ctx, b.to, make([]byte, 16), 1, 1)
		if errors.Is(err, context.Canceled) {
			_, fds, err = receiveFDs(t.Context(), b.to, make([]byte, 16), 1, 1)
		}
		if err := errors.Join(err, <-sent, closeFDs(fds)); err != nil {
			t.Fatal(err)
		}
	}
}

// parseControl is fed with bytes that no kernel would deliver. It must neither panic nor
// overlook a descriptor that stands in front of them.
func FuzzParseControl(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add(binary.NativeEndian.AppendUint32(nil, 7), unix.UnixRights(3, 4, 5))
	f.Add([]byte{}, unix.UnixCredentials(&unix.Ucred{Pid: 1}))
	f.Add([]byte{}, unix.UnixRights(1)[:unix.CmsgLen(0)+1])
	f.Add([]byte{1, 2, 3, 4}, bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, numbers, tail []byte) {
		var sent []int
		for ; len(numbers) >= 4; numbers = numbers[4:] {
			sent = append(sent, int(binary.NativeEndian.Uint32(numbers)>>1)) // no negative ones: nothing is open under those
		}
		fds, err := parseControl(append(rights(sent...), tail...))
		if len(fds) < len(sent) || !slices.Equal(fds[:len(sent)], sent) {
			t.Fatalf("of %v it found %v", sent, fds)
		}
		alone, _ := parseControl(tail)
		if !slices.Equal(fds[len(sent):], alone) {
			t.Errorf("behind %v it found %v, and alone %v", sent, fds[len(sent):], alone)
		}
		if all, parseErr := unix.ParseSocketControlMessage(tail); err == nil && (parseErr != nil || hasForeign(all)) {
			t.Errorf("% x passed: %v", tail, all)
		}
	})
}

func hasForeign(all []unix.SocketControlMessage) bool {
	return slices.ContainsFunc(all, func(m unix.SocketControlMessage) bool {
		return m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS
	})
}
