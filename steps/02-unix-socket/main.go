//go:build linux

// Step 02: two processes meet at a unix socket, and learn from the kernel who the other is.
//
//	go run ./steps/02-unix-socket        # the old process: listens
//	go run ./steps/02-unix-socket -c     # the new process: connects
//
// New since 01: control.go, the socket's path and who may listen on it; hello.go, the first
// message in both directions. The TCP server comes back in step 04.
//
// Needs Linux 2.6.4 (for SOCK_SEQPACKET) and no privilege.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

func main() { os.Exit(command(run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	nameProcess("old", stderr)
	flags := flag.NewFlagSet("02-unix-socket", flag.ContinueOnError)
	control := flags.String("control", "", "`path` of the unix socket where the two processes meet (default in a private folder)")
	connect := flags.Bool("c", false, "be the new process: connect to the old one")
	verbose := flags.Bool("v", false, "show every message")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	if *verbose {
		trace = log.Printf
	}
	if *connect {
		nameProcess("new", stderr)
	}
	path, err := controlPath(*control, flags.Name())
	if err != nil {
		return err
	}
	if *connect {
		return runNew(ctx, path)
	}
	return runOld(ctx, path)
}

// runOld meets every process that connects, until ctx ends.
func runOld(ctx context.Context, path string) error {
	listener, err := listenControl(ctx, path)
	if err != nil {
		return err
	}
	log.Printf("listening on %s", path)
	accept := func() (*socket.Conn, error) { return listener.accept(ctx) }
	return acceptAll(ctx, listener, accept, func(c *socket.Conn) {
		newcomer, err := greet(ctx, c, sameUser)
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF): // it only looked whether anybody is here
		case err != nil:
			log.Print(err)
		default:
			log.Printf("met %v: we speak version %d", newcomer, newcomer.version)
			stay(ctx, c, newcomer)
		}
	})
}

// runNew meets the old process, and stays until either of them goes.
func runNew(ctx context.Context, path string) error {
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	defer closeQuietly(c)
	old, err := greet(ctx, c, sameUserOrRoot)
	if err != nil {
		return err
	}
	log.Printf("met %v: we speak version %d", old, old.version)
	log.Printf("waiting on %s", path)
	stay(ctx, c, old)
	return nil
}

// stay waits until the other process is gone. However it ends, the kernel closes its sockets,
// and this end learns of it at once.
func stay(ctx context.Context, c *socket.Conn, other peer) {
	for {
		_, err := c.ReadContext(ctx, make([]byte, 1))
		switch {
		case ctx.Err() != nil:
			return
		case err == nil, errors.Is(err, unix.ECONNRESET): // it said something, or left it unread
		default:
			log.Printf("%v is gone: %v", other, err)
			return
		}
	}
}
