//go:build linux

// Step 01: a TCP server that sends every line back, and shows the descriptors behind it.
//
//	go run ./steps/01-echo            # in one terminal
//	nc 127.0.0.1 8080                 # in another: type lines
//
// This is the ground floor. For every connection it prints the number that the kernel
// chose for it in this process's descriptor table, and the socket's own identity, which
// no table changes. Later steps move that socket into another process's table.
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"os"
)

func main() { os.Exit(command(run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	nameProcess("echo", stderr)
	flags := flag.NewFlagSet("01-echo", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "TCP `host:port` to serve; port 0 lets the kernel choose")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}

	listener, err := listen(*addr)
	if err != nil {
		return err
	}
	id, err := identify(listener)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	log.Printf("%v, listening on %v", id, listener.Addr())

	return acceptAll(ctx, listener, listener.AcceptTCP, func(c *net.TCPConn) {
		serve(ctx, c, func(line []byte) { show(stdout, line) })
	})
}

// serve echoes one connection until its client has nothing more to say, or ctx ends.
func serve(ctx context.Context, c *net.TCPConn, show func(line []byte)) {
	stop := context.AfterFunc(ctx, func() { closeQuietly(c) })
	defer stop()
	id, err := identify(c)
	if err != nil {
		log.Printf("client %v: %v", c.RemoteAddr(), err)
		return
	}
	log.Printf("client %v -> %v is %v", c.RemoteAddr(), c.LocalAddr(), id)
	log.Printf("closing descriptor %d: %s", id.fd, reason(ctx, echo(c, show)))
}

// reason says in words why a connection ends.
func reason(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return "this process is ending"
	case err != nil:
		return err.Error()
	}
	return "after the client's end-of-file"
}
