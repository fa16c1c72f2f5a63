//go:build linux

package main

// Mistakes with what the two processes share once the descriptor has arrived.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// What a buffered reader has read ahead stands in the memory of one process, and no longer in
// the kernel. It has to travel as payload.
func breakReadahead(ctx context.Context, b *bench) error {
	for _, way := range []struct {
		say   say
		what  string
		along bool
	}{
		{b.wrong, "the descriptor alone", false},
		{b.right, "the descriptor and Peek(Buffered())", true},
	} {
		result, err := passReader(ctx, b, way.along)
		if err != nil {
			return err
		}
		way.say("%s: %s", way.what, result)
	}
	return nil
}

// passReader reads the first line from a pipe of three, sends the descriptor, and what the
// reader has read ahead if that is to come along, and says what the receiver can read.
func passReader(ctx context.Context, b *bench, along bool) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer closeQuietly(r)
	_, writeErr := w.WriteString("one\ntwo\nthree\n")
	if err := errors.Join(writeErr, w.Close()); err != nil {
		return "", err
	}
	in := bufio.NewReader(r)
	first, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	ahead, err := in.Peek(in.Buffered())
	if err != nil {
		return "", err
	}
	payload := []byte("a pipe")
	if along {
		payload = ahead
	}
	if err := borrow(r, func(fd int) error { return sendFDs(ctx, b.from, payload, fd) }); err != nil {
		return "", err
	}

	received := make([]byte, 64)
	n, fds, err := receiveFDs(ctx, b.to, received, 1, 1)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fds[0]), "pipe")
	defer closeQuietly(file)
	rest, err := io.ReadAll(file)
	if along {
		rest = append(received[:n], rest...)
	}
	return fmt.Sprintf("the old side has read %q, the new one gets %q", first, rest), err
}

// A connection ends for the client when the last descriptor of it is closed (close(2)), in
// whichever process that is.
func breakForgottenDup(ctx context.Context, b *bench) error {
	for _, way := range []struct {
		say    say
		what   string
		forget bool
	}{
		{b.wrong, "a File() duplicate is still open", true},
		{b.right, "no duplicate", false},
	} {
		result, err := giveAndClose(ctx, b, way.forget)
		if err != nil {
			return err
		}
		way.say("both processes have closed the connection, %s: the client %s", way.what, result)
	}
	return nil
}

// eofTime is how long the client waits for an end-of-file that is due at once.
const eofTime = 100 * time.Millisecond

// giveAndClose passes a server's end of a TCP connection on, closes it on both sides, and says
// what its client then reads.
func giveAndClose(ctx context.Context, b *bench, forget bool) (string, error) {
	client, server, err := tcpPair(ctx)
	if err != nil {
		return "", err
	}
	defer closeQuietly(client)
	defer closeQuietly(server)
	if forget {
		duplicate, err := server.File()
		if err != nil {
			return "", err
		}
		defer closeQuietly(duplicate)
	}
	if err := borrow(server, func(fd int) error { return sendFDs(ctx, b.from, []byte("client"), fd) }); err != nil {
		return "", err
	}
	_, fds, err := receiveFDs(ctx, b.to, make([]byte, 16), 1, 1)
	if err := errors.Join(err, server.Close(), closeFDs(fds)); err != nil {
		return "", err
	}

	if err := client.SetReadDeadline(time.Now().Add(eofTime)); err != nil {
		return "", err
	}
	_, err = client.Read(make([]byte, 1))
	switch {
	case errors.Is(err, io.EOF):
		return "reads end-of-file", nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("has read nothing, and no end-of-file, for %v", eofTime), nil
	}
	return "", err
}

// O_NONBLOCK belongs to the description (fcntl(2), F_SETFL), so both processes have it, or
// neither. Fd clears it, as its caller might want to block, and then the other process's reads
// block as well: not a goroutine but a thread, which no deadline reaches.
func breakNonblock(ctx context.Context, b *bench) error {
	return withOther(ctx, "nonblock", func(c *socket.Conn, _ int) error {
		for _, way := range []struct {
			say  say
			what string
			look func(*net.TCPConn) error
		}{
			{b.wrong, "File().Fd()", lookByFd},
			{b.right, "SyscallConn().Control()", func(c *net.TCPConn) error {
				return borrow(c, func(int) error { return nil })
			}},
		} {
			result, err := lookAtShared(ctx, c, way.look)
			if err != nil {
				return err
			}
			way.say("%s here, and there %s", way.what, result)
		}
		return nil
	})
}

func lookByFd(c *net.TCPConn) error {
	file, err := c.File()
	if err != nil {
		return err
	}
	file.Fd() //nolint:forbidigo // this is the mistake
	return file.Close()
}

// readTime is the deadline of the other process's read.
const readTime = 50 * time.Millisecond

// lookAtShared gives the other process a TCP connection, looks at its number here, and returns
// what the other process then says about its read.
func lookAtShared(ctx context.Context, other *socket.Conn, look func(*net.TCPConn) error) (string, error) {
	client, server, err := tcpPair(ctx)
	if err != nil {
		return "", err
	}
	defer closeQuietly(client)
	defer closeQuietly(server)
	if err := borrow(server, func(fd int) error { return sendFDs(ctx, other, []byte("client"), fd) }); err != nil {
		return "", err
	}
	if _, err := hear(ctx, other); err != nil { // it has adopted the connection
		return "", err
	}
	if err := errors.Join(look(server), sendFDs(ctx, other, []byte("read"))); err != nil {
		return "", err
	}
	patient, cancel := context.WithTimeout(ctx, 4*readTime)
	defer cancel()
	result, err := hear(patient, other)
	if errors.Is(err, context.DeadlineExceeded) {
		// Only a byte ends a read that blocks.
		if _, err := client.Write([]byte("x")); err != nil {
			return "", err
		}
		return hear(ctx, other)
	}
	return result, err
}

// readWithDeadline adopts each connection that comes, reads from it when told to, and says how
// that ended.
func readWithDeadline(ctx context.Context, c *socket.Conn) error {
	for {
		_, fds, err := receiveFDs(ctx, c, make([]byte, 16), 1, 1)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		conn, err := socket.New(fds[0], "client") // it sets O_NONBLOCK
		if err != nil {
			return err
		}
		if err := errors.Join(readWhenTold(ctx, c, conn), conn.Close()); err != nil {
			return err
		}
	}
}

func readWhenTold(ctx context.Context, c, conn *socket.Conn) error {
	if err := sendFDs(ctx, c, []byte("adopted")); err != nil {
		return err
	}
	if _, err := hear(ctx, c); err != nil {
		return err
	}
	nonblocking := false
	err := borrow(conn, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		nonblocking = flags&unix.O_NONBLOCK != 0
		return os.NewSyscallError("fcntl F_GETFL", err)
	})
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	begin := time.Now()
	n, err := conn.ReadContext(short, make([]byte, 1))
	result := fmt.Sprintf("O_NONBLOCK is %t, and a read with a deadline of %v ends after %v: %d bytes, error %v",
		nonblocking, readTime, time.Since(begin).Round(time.Millisecond), n, err)
	return sendFDs(ctx, c, []byte(result))
}

// tcpPair returns both ends of a TCP connection.
func tcpPair(ctx context.Context) (client net.Conn, server *net.TCPConn, err error) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	defer closeQuietly(listener)
	client, err = new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	server, err = listener.AcceptTCP()
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, server, nil
}
