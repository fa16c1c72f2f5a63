//go:build linux

package main

// Taking everything over: the new process's side of the conversation in give.go.

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// taker is this process's end of the conversation with the old one.
type taker struct {
	*socket.Conn
	server *server
	old    peer
	unpacker
	over    error         // why the conversation has ended
	moved   int           // connections that it has taken
	longest time.Duration // how long one of them stood still
}

// takeOver asks the old process for everything, and serves the connections as they come.
func (t *taker) takeOver(c *socket.Conn, addrs, path string, inherited []*net.TCPListener) (all *everything, err error) {
	begin := time.Now()
	old, m, fds, err := ask(c)
	if err != nil {
		return nil, err
	}
	t.Conn, t.old = c, old
	// Only now is opened what the old process does not have: it may be allowed more, such as port 80,
	// than this one. And before anything moves, there must be room for all.
	all, err = adopt(m, fds, path)
	if err == nil && m.What != "listeners" {
		err = fmt.Errorf("unexpected offer of %q", m.What)
	}
	if err == nil && m.Clients > cap(t.server.slots) {
		err = fmt.Errorf("no room for %d connections, but for %d: raise RLIMIT_NOFILE (ulimit -n)", m.Clients, cap(t.server.slots))
	}
	if err == nil {
		all.listeners, all.surplus, err = arrange(addrs, inherited, all.listeners)
	}
	if err != nil {
		sendMessage(t.Conn, message{Type: "refused", Reason: err.Error()})
		return nil, err
	}
	if err := commit(t.Conn); err != nil {
		return nil, fmt.Errorf("%v %w", t.old, err)
	}
	done, err := t.takeAll()
	switch {
	case err == nil:
		all.totals = done
		log.Printf("taken over from %v, generation %d: connections moved: %d, in %v; none stood still for longer than %v", t.old,
			done.Generation, t.moved, time.Since(begin).Round(time.Microsecond), t.longest.Round(time.Microsecond))
	case errors.Is(err, errGone):
		log.Printf("%v has ended before it had given everything; connections that had come: %d", t.old, t.moved)
	default:
		t.Close()
		all.forget()
		return nil, fmt.Errorf("%v %w", t.old, err)
	}
	all.totals.Generation++
	all.before = t.Conn
	// Whoever calls listen(2) last is the one whom the kernel names to those who connect: unix(7).
	return all, all.control.Listen(backlog)
}

// forget closes copies of what stays another process's.
func (all *everything) forget() {
	for _, l := range append(all.listeners, all.surplus...) {
		l.Close()
	}
	all.control.Close()
	unix.Close(all.control.lock)
}

// takeAll takes one offer after the other, until the old process is done. The error is errGone if that
// dies before, and otherwise says why it goes on without this one.
func (t *taker) takeAll() (totals, error) {
	for {
		m, fds, err := t.receive()
		switch { // a bad record is refused below, like an offer that is not true
		case err != nil && !errors.Is(err, errBadRecord):
			return totals{}, err
		case m.Type == "withdraw", m.Type == "refused":
			return totals{}, m.gaveUp()
		}
		if err == nil {
			err = t.takeNext(m, fds)
		}
		switch {
		case t.over != nil:
			return totals{}, t.over
		case err != nil:
			log.Printf("refused an offer: %v", err)
			sendMessage(t.Conn, message{Type: "refused", Reason: err.Error()}) // fails as the next receipt does
		case m.What == "done":
			return m.Totals, nil
		}
	}
}

// takeNext takes what an offer offers, and owns its descriptors. After an error it is refused, unless
// the conversation is over.
func (t *taker) takeNext(m message, fds []int) error {
	switch {
	case m.Type == "offer" && m.What == "connections":
		batch, err := t.unpack(fds)
		if err == nil {
			err = t.server.adopt(batch, t.commit)
		}
		if err == nil {
			t.moved += len(batch)
			t.longest = max(t.longest, uptime()-m.Stood)
		}
		return err
	case m.Type == "offer" && m.What == "done" && len(fds) == 0:
		return t.commit()
	}
	closeFDs(fds)
	return fmt.Errorf("unexpected %s %q with %d descriptors", m.Type, m.What, len(fds))
}

func (t *taker) commit() error {
	t.over = commit(t.Conn)
	return t.over
}

// receive waits for the next message, for as long as the old process lives. Nothing is lost by that:
// what has come is served, and the rest is not this process's.
func (t *taker) receive() (message, []int, error) {
	t.SetDeadline(time.Time{}) // none for the answer, which is small
	t.SetReadDeadline(time.Now().Add(10 * time.Second))
	m, fds, err := receiveMessage(t.Conn, scmMaxFD)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		log.Printf("%v is silent: is it stopped? Then send it SIGCONT, or SIGKILL", t.old)
		t.SetReadDeadline(time.Time{})
		m, fds, err = receiveMessage(t.Conn, scmMaxFD)
	}
	return m, fds, err
}
