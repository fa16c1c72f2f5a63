//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/socket"
)

// oldProcess serves TCP clients, and gives those away that type STEAL.
type oldProcess struct {
	stdout  io.Writer
	timeout time.Duration // how long an offer may stay unanswered

	greeting sync.Mutex // one at a time, so that the place is taken by who finishes its hello

	mu      sync.Mutex
	waiting *giver // to the new process that waits; nil if none does
}

// run serves TCP on addr and new processes on the control path, until ctx ends.
func (o *oldProcess) run(ctx context.Context, addr, path string) error {
	control, err := listenControl(ctx, path)
	if err != nil {
		return err
	}
	listener, err := listen(addr)
	if err != nil {
		return errors.Join(err, control.Close())
	}
	log.Printf("control socket on %s", path)
	log.Printf("listening on %v", listener.Addr())

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		defer cancel()
		accept := func() (*socket.Conn, error) { return control.accept(ctx) }
		failed <- acceptAll(ctx, control, accept, func(c *socket.Conn) { o.meet(ctx, c) })
	}()
	err = acceptAll(ctx, listener, listener.AcceptTCP, func(c *net.TCPConn) { o.serve(ctx, c) })
	cancel()
	return errors.Join(err, <-failed)
}

// serve echoes one client until it has nothing more to say, it is stolen, or ctx ends.
func (o *oldProcess) serve(ctx context.Context, c *net.TCPConn) {
	endWith := func() (stop func() bool) { return context.AfterFunc(ctx, func() { closeQuietly(c) }) }
	stop := endWith()
	defer func() { stop() }()
	id, err := identify(c)
	if err != nil {
		log.Printf("client %v: %v", c.RemoteAddr(), err)
		return
	}
	log.Printf("client %v -> %v is %v", c.RemoteAddr(), c.LocalAddr(), id)
	taken := false
	err = echo(c, nil, func(line []byte) { show(o.stdout, line) }, func(unread []byte) (bool, error) {
		// Until the offer is answered, the new process may come for the descriptor: ctx must
		// not close it. If it has done so already, nothing can be offered, and steal says so.
		stop()
		taken, err = o.steal(c, id, unread)
		stop = endWith()
		return taken, err
	})
	// Closing is all that the old process may do to a stolen connection: close(2) takes away
	// its own descriptor, shutdown(2) would end the connection for the new process as well. One that
	// is its own it ends for everybody: a new process that was offered it in vain, and sleeps, may
	// have a descriptor of it, and then its client would wait for the end.
	if !taken {
		_ = c.CloseWrite() // its client may have ended it
	}
	log.Printf("closing descriptor %d: %s", id.fd, reason(ctx, taken, err))
}

// steal gives c to the new process that waits, or tells the client why it cannot.
func (o *oldProcess) steal(c *net.TCPConn, id identity, unread []byte) (taken bool, err error) {
	o.mu.Lock()
	to := o.waiting
	o.mu.Unlock()
	failure := errNobodyWaits
	if to != nil {
		log.Printf("descriptor %d: STEAL: offering it to %v with %d bytes read ahead", id.fd, to.to, len(unread))
		failure = to.give(parcel{conn: c, unread: unread})
	}
	if failure == nil {
		return true, nil
	}
	log.Printf("descriptor %d: not stolen: %v", id.fd, failure)
	_, err = fmt.Fprintf(c, "* not stolen: %s\n", strings.ReplaceAll(failure.Error(), "\n", "; "))
	return false, err
}

// meet gives a new process the place of the one that waits, as long as it stays.
func (o *oldProcess) meet(ctx context.Context, c *socket.Conn) {
	to, err := o.welcome(ctx, c)
	switch {
	case err == nil:
	case ctx.Err() != nil, errors.Is(err, io.EOF): // it only looked whether anybody is here
		return
	default:
		log.Print(err)
		return
	}
	defer o.vacate(to)
	defer letFetch(to.to)()
	log.Printf("%v waits for connections: type STEAL in one", to.to)
	if err := to.run(ctx); err != nil {
		log.Print(err)
	}
}

// welcome says hello to a new process that may have the place. It has it before it hears our
// hello: from then on it may count on it.
func (o *oldProcess) welcome(ctx context.Context, c *socket.Conn) (to *giver, err error) {
	o.greeting.Lock()
	defer o.greeting.Unlock()
	_, err = greet(ctx, c, func(p peer) error {
		if err := sameUser(p); err != nil {
			return err
		}
		to = newGiver(c, p, o.timeout)
		return o.reserve(to)
	})
	if err != nil {
		o.vacate(to)
		return nil, err
	}
	return to, nil
}

// reserve gives the only place for a new process to the one behind to, if it is free.
func (o *oldProcess) reserve(to *giver) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting != nil {
		return fmt.Errorf("pid %d waits already, and one new process waits at a time", o.waiting.to.pid)
	}
	o.waiting = to
	return nil
}

// vacate frees the place, if it is that of to.
func (o *oldProcess) vacate(to *giver) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if to != nil && o.waiting == to { // it may not have come so far
		o.waiting = nil
		to.stop()
	}
}

// reason says in words why this process closes a connection.
func reason(ctx context.Context, taken bool, err error) string {
	switch {
	case taken && ctx.Err() != nil:
		return "this process is ending, and the new one has it if it has fetched it"
	case taken:
		return "left to the new process"
	case ctx.Err() != nil:
		return "this process is ending"
	case err != nil:
		return err.Error()
	}
	return "after the client's end-of-file"
}
