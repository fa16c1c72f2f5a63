//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// runNew takes what the process on the control path gives, and serves it until the last client
// has gone or ctx ends. It outlives the old process by as long as that takes.
func runNew(ctx context.Context, path string, stdout io.Writer) error {
	control, err := dialControl(path)
	if err != nil {
		return err
	}
	defer closeQuietly(control)
	old, err := greet(ctx, control, sameUserOrRoot)
	if err != nil {
		return err
	}
	log.Printf("met %v", old)
	log.Printf("waiting on %s", path)

	var clients sync.WaitGroup
	var serving atomic.Int32
	defer clients.Wait()
	for from := (&taker{old, control}); ; {
		s, err := from.take(ctx)
		switch {
		case err == nil:
			serving.Add(1)
			clients.Go(func() {
				defer serving.Add(-1)
				serveStolen(ctx, s, old, stdout)
			})
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			log.Printf("%v is gone; connections to serve to their end: %d", old, serving.Load())
			return nil
		default:
			if n := serving.Load(); n > 0 {
				log.Printf("%v; connections to serve to their end: %d", err, n)
			}
			return err
		}
	}
}

// serveStolen answers the client's STEAL, and goes on where the old process stopped.
func serveStolen(ctx context.Context, s stolen, old peer, stdout io.Writer) {
	defer closeQuietly(s.conn)
	stop := context.AfterFunc(ctx, func() { closeQuietly(s.conn) })
	defer stop()
	// First of all the answer: until then the client waits.
	_, err := fmt.Fprintf(s.conn, "* stolen: pid %d -> pid %d\n", old.pid, os.Getpid())
	id, idErr := identify(s.conn)
	if err := errors.Join(err, idErr); err != nil {
		log.Printf("stolen connection: %v", err)
		return
	}
	log.Printf("client %s -> %s is %v, with %d bytes read ahead", remote(s), local(s), id, len(s.unread))
	err = echo(s.conn, s.unread, func(line []byte) { show(stdout, line) }, func([]byte) (bool, error) {
		_, err := fmt.Fprintf(s.conn, "* not stolen: pid %d has it already, and nobody waits for it there\n", os.Getpid())
		return false, err
	})
	_ = s.conn.CloseWrite() // for the old process as well, should it not have closed its descriptor yet
	log.Printf("closing descriptor %d: %s", id.fd, reason(ctx, false, err))
}

func local(s stolen) string  { return address(s.conn.Getsockname()) }
func remote(s stolen) string { return address(s.conn.Getpeername()) }

// address writes a socket's address as package net does.
func address(sa unix.Sockaddr, err error) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)).String()
	}
	return fmt.Sprintf("somewhere (%v)", err)
}
