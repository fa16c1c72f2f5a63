//go:build linux

package main

// The old process's side. Everything goes in one offer, and until the next process has said "taken"
// nothing changes: this one goes on accepting, as two processes can wait at one accept queue.

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// The versions of the protocol that this program speaks. Here two builds of a program meet, and the
// next one may be newer. So it says hello, and with it which versions it speaks; the old one goes on
// in the highest that both do, or refuses.
const minVersion, maxVersion = 1, 1

// content is what a message says besides its type. With an offer come the control socket, its lock,
// and the listeners.
type content struct {
	Min     int    `json:"min,omitempty"` // hello: the versions that the new process speaks
	Max     int    `json:"max,omitempty"`
	Version int    `json:"version,omitempty"` // offer: the one in which they go on
	Totals  totals `json:"totals,omitzero"`   // offer: what is counted; drained: what has been since
}

// giver gives everything that this process listens on to the next one.
type giver struct {
	server  *server
	timeout time.Duration // how long another process may take for each of its messages
	taken   chan struct{} // closed when one has everything, and serves

	mu        sync.Mutex     // held for a whole offer, and while what follows changes
	control   *controlSocket // nil: another process has everything
	listeners []*net.TCPListener
	told      totals // what the other process knows
	next      *socket.Conn
}

// acceptAll hears everyone who connects to the control socket, each in a goroutine of its own: one
// that is silent keeps nobody out.
func (g *giver) acceptAll(control *socket.Conn) {
	for {
		c, _, err := control.Accept(context.Background(), 0)
		if err == nil {
			go g.meet(c)
			continue
		}
		g.mu.Lock()
		closed := g.control == nil || g.control.Conn != control
		g.mu.Unlock()
		if closed {
			return
		}
		log.Print(err) // a shortage, which will pass: accept(2)
		time.Sleep(time.Second)
	}
}

// meet hears one process, and gives it everything.
func (g *giver) meet(c *socket.Conn) {
	p, err := peerOf(c)
	if err == nil {
		err = g.give(c, p)
	}
	if err != nil {
		if !errors.Is(err, errGiven) { // who hears nothing looks again, and finds the process that has it
			log.Printf("not taken over: %v", err)
			sendMessage(c, message{Type: "refused", Reason: err.Error()}) // fails if it is gone
		}
		c.Close()
		return
	}
	log.Printf("taken over by %v", p)
	// It says "serving" when it does, and has told the supervisor whom to watch from now on. A
	// supervisor that saw this process end before that would think that the service has ended.
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := receiveMessage(c, 0); err != nil {
		log.Printf("%v has not said that it serves: %v", p, err)
	}
	g.next = c
	close(g.taken)
}

// finish tells the next process what has been counted since the offer, and so that this one ends.
func (g *giver) finish() {
	now := g.server.now()
	since := totals{Connections: now.Connections - g.told.Connections, Lines: now.Lines - g.told.Lines}
	g.next.SetDeadline(time.Now().Add(10 * time.Second))
	sendMessage(g.next, message{Type: "drained", content: content{Totals: since}}) // fails if it is gone
}

var errGiven = errors.New("another process has taken over")

// give offers everything to one process, and leaves it to it.
func (g *giver) give(c *socket.Conn, p peer) error {
	c.SetDeadline(time.Now().Add(g.timeout))
	hello, _, err := receiveMessage(c, 0)
	version := min(hello.Max, maxVersion)
	switch {
	case err != nil:
		return fmt.Errorf("hello from %v: %w", p, err)
	case hello.Type != "hello" || version < max(hello.Min, minVersion):
		return fmt.Errorf("%v says %q, and speaks versions %d to %d of the protocol; this is pid %d, with %d to %d: start a build in between first",
			p, hello.Type, hello.Min, hello.Max, os.Getpid(), minVersion, maxVersion)
	case os.Getpid() == 1:
		return errors.New("with pid 1 the kernel would end all of its container: start the server below an init (docker run --init)")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.control == nil {
		return errGiven
	}
	fds := []int{0, g.control.lock} // nobody closes these as long as mu is held
	fds[0], _, _ = identify(g.control)
	for _, l := range g.listeners {
		fd, _, _ := identify(l)
		fds = append(fds, fd)
	}
	g.told = g.server.now()
	m := message{Type: "offer", content: content{Version: version, Totals: g.told}}
	if _, err := offer(c, p, g.timeout, func() error { return sendMessage(c, m, fds...) }); err != nil {
		return err
	}
	for _, l := range g.listeners {
		l.Close()
	}
	g.control.Close()
	unix.Close(g.control.lock)
	g.control = nil
	return nil
}
