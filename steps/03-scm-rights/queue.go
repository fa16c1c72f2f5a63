//go:build linux

package main

// Story 2. The accept queue belongs to the listening socket, not to a process. Whoever has a
// descriptor of the listener can accept who waits there, whoever opened it.

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
)

// sendListener opens a listener, lets a client queue up there, sends the listener away, and
// shows what the client then hears.
func sendListener(ctx context.Context, c *socket.Conn, stdout io.Writer) error {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer closeQuietly(listener)
	// connect(2) succeeds as soon as the kernels have shaken hands. Nobody accepts yet, and
	// what the client says waits with it.
	client, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer closeQuietly(client)
	defer endsWith(ctx, client)()
	if _, err := io.WriteString(client, "who is there?\n"); err != nil {
		return err
	}
	if err := giveAway(ctx, c, listener); err != nil {
		return fmt.Errorf("send the listener: %w", err)
	}
	answer, err := readLine(client)
	if err != nil {
		return fmt.Errorf("the client in the accept queue: %w", err)
	}
	log.Printf("client %v hears:", client.LocalAddr())
	fmt.Fprintf(stdout, "%q\n", answer)
	return nil
}

// giveAway sends the listener and closes it here. Between the two calls the socket is open in
// both processes, or in flight; it is never without an owner, and refuses no client.
func giveAway(ctx context.Context, c *socket.Conn, listener *net.TCPListener) error {
	id, err := identify(listener)
	if err != nil {
		return err
	}
	log.Printf("a client waits in the accept queue of %v", listener.Addr())
	log.Printf("sending the listener: %v", id)
	err = borrow(listener, func(fd int) error { return sendFDs(ctx, c, []byte("listener"), fd) })
	if err != nil {
		return err
	}
	return listener.Close()
}

// receiveListener receives a listener, and answers the first client that waits there.
func receiveListener(ctx context.Context, c *socket.Conn, stdout io.Writer) error {
	_, fds, err := receiveFDs(ctx, c, make([]byte, 16), 1, 1)
	if err != nil {
		return fmt.Errorf("receive the listener: %w", err)
	}
	// Not net.FileListener: it would keep a duplicate of the descriptor, and leave us another
	// one to close. New takes the very number that came.
	listener, err := socket.New(fds[0], "listener")
	if err != nil {
		return err
	}
	defer closeQuietly(listener)
	id, err := identify(listener)
	if err != nil {
		return err
	}
	log.Printf("received the listener: %v", id)
	return answer(ctx, listener, stdout)
}

// answer accepts one client, shows its question, and says who is there.
func answer(ctx context.Context, listener *socket.Conn, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	client, _, err := listener.Accept(ctx, 0)
	if err != nil {
		return err
	}
	defer closeQuietly(client)
	defer endsWith(ctx, client)()
	question, err := readLine(client)
	if err != nil {
		return fmt.Errorf("the client that waited: %w", err)
	}
	log.Print("accepted the client that waited; it says:")
	fmt.Fprintf(stdout, "%q\n", question)
	_, err = io.WriteString(client, answerOf(os.Getpid()))
	return err
}

// answerOf is what a process answers to a client.
func answerOf(pid int) string { return fmt.Sprintf("pid %d\n", pid) }

// endsWith makes every wait on c end when ctx does, until stop is called.
func endsWith(ctx context.Context, c interface{ SetDeadline(time.Time) error }) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = c.SetDeadline(time.Now()) // it fails on what is closed, where nobody waits
	})
}
