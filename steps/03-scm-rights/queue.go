//go:build linux

package main

// Story 2. The accept queue belongs to the listening socket, not to a process. Whoever has a
// descriptor of the listener can accept who waits there, whoever opened it.

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
)

// sendListener opens a listener, lets a client queue up there, gives the listener away, and shows
// what the client then hears.
func sendListener(c *socket.Conn) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// connect(2) succeeds as soon as the kernel has shaken hands. Nobody has accepted yet, and what
	// the client says waits with it.
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(20 * time.Second)) // for a new process that falls silent
	fmt.Fprintln(client, "who is there?")                // what fails here, fails below
	tcp := listener.(*net.TCPListener)
	fd, cookie, err := identify(tcp)
	if err != nil {
		return err
	}
	log.Printf("a client waits; sending the listener, descriptor %d, cookie %d", fd, cookie)
	// The number is looked up at sendmsg(2). From then on the message holds a reference to the
	// socket, whatever becomes of the number, or of this process.
	err = borrow(tcp, func(fd int) error { return sendFDs(c, []byte("listener"), fd) })
	listener.Close() // in flight, or open in the other process, the socket refuses no client
	if err != nil {
		return err
	}
	answer, err := readLine(client)
	log.Printf("the client hears %q", answer)
	return err
}

// receiveListener receives a listener, and answers the first client that waits there.
func receiveListener(c *socket.Conn) error {
	_, fds, err := receiveFDs(c, make([]byte, 16), 1, 1)
	if err != nil {
		return err
	}
	// Not net.FileListener, which duplicates the descriptor. New takes the very one that came, and
	// owns it even if it fails: do not close it again.
	listener, err := socket.New(fds[0], "listener")
	if err != nil {
		return err
	}
	defer listener.Close()
	fd, cookie, err := identify(listener)
	if err != nil {
		return err
	}
	log.Printf("received the listener, descriptor %d, cookie %d", fd, cookie)
	client, _, err := listener.Accept(context.Background(), 0)
	if err != nil {
		return err
	}
	defer client.Close()
	question, err := readLine(client)
	fmt.Printf("%q\n", question)
	fmt.Fprintf(client, "pid %d\n", os.Getpid())
	return err
}
