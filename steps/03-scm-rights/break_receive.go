//go:build linux

package main

// Mistakes in receiving.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// The kernel closes what does not fit the control buffer, sets MSG_CTRUNC, and returns
// success. A buffer for one may have room for two, because CMSG_SPACE rounds up.
func breakShortBuffer(ctx context.Context, b *bench) error {
	for _, way := range []struct {
		say  say
		room int
	}{{b.wrong, 1}, {b.right, maxFDs}} {
		if err := sendFDs(ctx, b.from, []byte("three"), b.null, b.null, b.null); err != nil {
			return err
		}
		got, err := take(ctx, b.to, way.room, unix.MSG_CMSG_CLOEXEC)
		way.say("3 sent, a buffer of CmsgSpace(4*%d) = %d bytes: recvmsg: %v, error %v", way.room, unix.CmsgSpace(4*way.room), got, err)
		if err := errors.Join(err, closeFDs(got.fds)); err != nil {
			return err
		}
	}
	return nil
}

// Where other system calls fail with EMFILE, recvmsg(2) closes what it cannot install, sets
// MSG_CTRUNC, and returns success.
func breakNofileLimit(ctx context.Context, b *bench) error {
	return withOther(ctx, "nofile-limit", func(c *socket.Conn, _ int) error {
		for _, tell := range []say{b.wrong, b.right} {
			if err := sendFDs(ctx, c, []byte("four"), b.null, b.null, b.null, b.null); err != nil {
				return err
			}
			result, err := hear(ctx, c)
			if err != nil {
				return err
			}
			tell("4 sent, 1 number free there: %s", result)
		}
		return nil
	})
}

// atTheLimit leaves this process one free number, and receives twice: like someone who looks
// for an error only, and with receiveFDs.
func atTheLimit(ctx context.Context, c *socket.Conn) error {
	lowest, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	limit := unix.Rlimit{Cur: uint64(lowest) + 1, Max: uint64(lowest) + 1}
	err = errors.Join(closeFDs([]int{lowest}), os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)))
	if err != nil {
		return err
	}

	got, err := take(ctx, c, maxFDs, unix.MSG_CMSG_CLOEXEC)
	result := fmt.Sprintf("recvmsg: %v, error %v", got, err)
	if err := errors.Join(closeFDs(got.fds), sendFDs(ctx, c, []byte(result))); err != nil {
		return err
	}
	_, fds, err := receiveFDs(ctx, c, make([]byte, 16), 4, 4)
	result = fmt.Sprintf("receiveFDs: descriptors %d, error %v", len(fds), err)
	return errors.Join(closeFDs(fds), sendFDs(ctx, c, []byte(result)))
}

// close-on-exec belongs to the number, not to the description, so it does not travel. To set
// it after the receipt is too late for a child that another thread starts in between.
func breakNoCloexec(ctx context.Context, b *bench) error {
	return withFDs(ctx, b, 0, func(without []int) error {
		return withFDs(ctx, b, unix.MSG_CMSG_CLOEXEC, func(with []int) error {
			return withOther(ctx, "no-cloexec", func(_ *socket.Conn, child int) error {
				b.wrong("no flag: %s", inheritance(without, child))
				b.right("MSG_CMSG_CLOEXEC: %s", inheritance(with, child))
				return nil
			})
		})
	})
}

// withFDs sends one descriptor, receives it with flags, and closes it after use.
func withFDs(ctx context.Context, b *bench, flags int, use func(fds []int) error) error {
	if err := sendFDs(ctx, b.from, []byte("one"), b.null); err != nil {
		return err
	}
	got, err := take(ctx, b.to, maxFDs, flags)
	if err == nil {
		err = use(got.fds)
	}
	return errors.Join(err, closeFDs(got.fds))
}

// inheritance says how many of our descriptors are open in a child too, under their numbers.
func inheritance(fds []int, child int) string {
	closeOnExec, inherited := 0, 0
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			closeOnExec += flags & unix.FD_CLOEXEC
		}
		ours, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		theirs, childErr := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", child, fd))
		if err == nil && childErr == nil && ours == theirs {
			inherited++
		}
	}
	return fmt.Sprintf("received %d, close-on-exec %d, inherited by a child %d", len(fds), closeOnExec, inherited)
}

// stayAround waits until the other side hangs up.
func stayAround(ctx context.Context, c *socket.Conn) error {
	_, err := hear(ctx, c)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// MSG_PEEK leaves the message in the queue, and yet installs its descriptors, at every peek.
func breakPeek(ctx context.Context, b *bench) error {
	for _, way := range []struct {
		say  say
		what string
		room int
	}{
		{b.wrong, "with room for descriptors", maxFDs},
		{b.right, "with room for none", 0},
	} {
		if err := sendFDs(ctx, b.from, []byte("one"), b.null); err != nil {
			return err
		}
		var peeked []int
		for range 3 {
			got, err := take(ctx, b.to, way.room, unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC)
			peeked = append(peeked, got.fds...)
			if err != nil {
				return errors.Join(err, closeFDs(peeked))
			}
		}
		_, fds, err := receiveFDs(ctx, b.to, make([]byte, 16), 1, 1)
		way.say("1 sent; three peeks %s installed %d, the receipt %d more", way.what, len(peeked), len(fds))
		if err := errors.Join(err, closeFDs(peeked), closeFDs(fds)); err != nil {
			return err
		}
	}
	return nil
}

// A read(2) takes the payload, and the kernel closes the descriptors that came with it.
// recvmsg(2) would at least have set MSG_CTRUNC.
func breakPlainRead(ctx context.Context, b *bench) error {
	for _, way := range []struct {
		say     say
		what    string
		receive func(payload []byte) (n int, fds []int, err error)
	}{
		{b.wrong, "read", func(payload []byte) (int, []int, error) {
			n, err := b.to.ReadContext(ctx, payload)
			return n, nil, err
		}},
		{b.right, "receiveFDs", func(payload []byte) (int, []int, error) {
			return receiveFDs(ctx, b.to, payload, 1, 1)
		}},
	} {
		result, err := passPipe(ctx, b.from, way.receive)
		if err != nil {
			return err
		}
		way.say("%s: %s", way.what, result)
	}
	return nil
}

// passPipe sends the writing end of a pipe, closes its own duplicate, lets the receiver write
// to what it got, and says what comes out at the reading end.
func passPipe(ctx context.Context, from *socket.Conn, receive func(payload []byte) (int, []int, error)) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer closeQuietly(r)
	err = borrow(w, func(fd int) error { return sendFDs(ctx, from, []byte("pipe"), fd) })
	if err := errors.Join(err, w.Close()); err != nil {
		return "", err
	}
	payload := make([]byte, 16)
	n, fds, err := receive(payload)
	if err != nil {
		return "", err
	}
	for _, fd := range fds {
		_, writeErr := unix.Write(fd, []byte("hello"))
		err = errors.Join(err, os.NewSyscallError("write", writeErr))
	}
	if err := errors.Join(err, closeFDs(fds)); err != nil {
		return "", err
	}
	heard, err := io.ReadAll(r)
	return fmt.Sprintf("payload %q, descriptors %d; out of the pipe comes %q", payload[:n], len(fds), heard), err
}
