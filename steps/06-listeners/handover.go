//go:build linux

package main

// How the listeners change hands. Everything goes in one offer, and until the next process has said
// "taken" nothing changes: the old one goes on accepting, as two processes can wait at one accept queue.

import (
	"fmt"
	"log"
	"net"

	"github.com/mdlayher/socket"
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

// give offers everything to the next process, and leaves it to it.
func (g *giver) give(c *socket.Conn, p peer, version int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.control == nil {
		return errGiven
	}
	fds, err := g.descriptors()
	if err != nil {
		return err
	}
	g.told = g.server.now()
	m := message{Type: "offer", content: content{Version: version, Totals: g.told}}
	if _, err := offer(c, p, g.timeout, func() error { return sendMessage(c, m, fds...) }); err != nil {
		return err
	}
	log.Printf("taken over by %v", p)
	g.leave()
	return nil
}

// takeOver takes everything from the process at the other end of c. Only when it has been offered is
// opened what that process does not have: this one may be allowed less, such as port 80.
func takeOver(c *socket.Conn, addrs, path string, inherited []*net.TCPListener) (*everything, error) {
	old, m, fds, err := ask(c)
	if err != nil {
		return nil, err
	}
	all, err := adopt(m, fds, path)
	if err == nil {
		all.listeners, all.surplus, err = arrange(addrs, inherited, all.listeners)
	}
	if err != nil {
		sendMessage(c, message{Type: "refused", Reason: err.Error()})
		return nil, err
	}
	if err := commit(c); err != nil {
		return nil, fmt.Errorf("%v %w", old, err)
	}
	log.Printf("taken over from %v, generation %d", old, all.totals.Generation)
	all.totals.Generation++
	all.before = c
	// Whoever calls listen(2) last is the one whom the kernel names to those who connect: unix(7).
	return all, all.control.Listen(backlog)
}
