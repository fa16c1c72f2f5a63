//go:build linux

package main

// What the mistakes are made with.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// bench has a connected pair of unix sockets, and something to send.
type bench struct {
	from, to *socket.Conn
	null     int // a descriptor of /dev/null; it can be sent many times in one message
	out      io.Writer
}

func newBench(kind int, out io.Writer) (*bench, error) {
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("socketpair", err), closeFDs([]int{null}))
	}
	from, fromErr := socket.New(fds[0], "from")
	to, toErr := socket.New(fds[1], "to")
	return &bench{from, to, null, out}, errors.Join(fromErr, toErr)
}

func (b *bench) close() {
	closeQuietly(b.from)
	closeQuietly(b.to)
	_ = unix.Close(b.null) // nothing was written to it
}

// say prints one line of what was measured. wrong and right are the two that there are.
type say func(format string, args ...any)

func (b *bench) wrong(format string, args ...any) { fmt.Fprintf(b.out, "wrong: "+format+"\n", args...) }
func (b *bench) right(format string, args ...any) { fmt.Fprintf(b.out, "right: "+format+"\n", args...) }

// arrival is what one recvmsg(2) brought.
type arrival struct {
	payload string
	fds     []int
	flags   int
}

func (a arrival) String() string {
	return fmt.Sprintf("payload %q, descriptors %d, flags %s", a.payload, len(a.fds), flagNames(a.flags))
}

// take is a receiver that checks nothing, with room for so many descriptors.
func take(ctx context.Context, c *socket.Conn, room, flags int) (arrival, error) {
	payload, control := make([]byte, 64), make([]byte, unix.CmsgSpace(4*room))
	n, control, got, err := receiveRaw(ctx, c, payload, control, flags)
	if err != nil {
		return arrival{}, err
	}
	fds, err := parseControl(control)
	return arrival{string(payload[:n]), fds, got}, err
}

func flagNames(flags int) string {
	var names []string
	if flags&unix.MSG_CTRUNC != 0 {
		names = append(names, "MSG_CTRUNC")
	}
	if flags&unix.MSG_TRUNC != 0 {
		names = append(names, "MSG_TRUNC")
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, "|")
}

// withOther starts the other process of the mistake called name, and talks to it.
func withOther(ctx context.Context, name string, talk func(c *socket.Conn, pid int) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	folder, err := os.MkdirTemp("", "03-scm-rights-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	path := filepath.Join(folder, "control")
	listener, err := listenControl(ctx, path)
	if err != nil {
		return err
	}
	defer closeQuietly(listener)
	other, err := startChild(ctx, log.Writer(), "-break", name, "-c", "-control", path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			cancel() // which kills it: it may wait for what now never comes
		}
		err = errors.Join(err, other.wait())
	}()
	alive, died := context.WithCancel(ctx)
	go func() {
		<-other.ended
		died()
	}()
	c, err := listener.accept(alive)
	if err != nil {
		return err
	}
	defer closeQuietly(c)
	return talk(c, other.Process.Pid)
}

// hear receives words without descriptors.
func hear(ctx context.Context, c *socket.Conn) (string, error) {
	words := make([]byte, 256)
	n, _, err := receiveFDs(ctx, c, words, 0, 0)
	return string(words[:n]), err
}
