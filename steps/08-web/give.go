//go:build linux

package main

// Giving everything away: the old process's side, by the rules of protocol.go. The conversation is
//
//	hello        from the new process: the versions that it speaks
//	listeners    offer: copies of the control socket, its lock and the listeners. To take them is to have
//	             copies, no more: this process goes on accepting
//	connections  offer: a batch, which is the new one's when it is taken. Any number of these
//	done         offer: to take it is to take everything
//	serving      from the new process: this one may end
//	drained      this one ends
//
// Until "done" is taken, this process can go on with whatever has not been taken. If it dies before that,
// nobody else has the listeners but the new one, and they are its own.

import (
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// The versions of the protocol that this program speaks. Version 1 is step 06's.
const minVersion, maxVersion = 2, 2

// content is what a message says besides its type.
type content struct {
	Min     int           `json:"min,omitempty"` // hello: the versions that the new process speaks
	Max     int           `json:"max,omitempty"`
	What    string        `json:"what,omitempty"`    // offer: listeners, connections or done
	Version int           `json:"version,omitempty"` // listeners: the one in which they go on
	Clients int           `json:"clients,omitempty"` // listeners: how many connections there are
	Totals  totals        `json:"totals,omitzero"`   // listeners, done: what is counted; drained: what has been since
	Stood   time.Duration `json:"stood,omitempty"`   // connections: since when one of them stands still, by uptime
}

// give gives everything to one process. After an error that has some of the connections, if any, and
// the rest is served here as before.
func (g *giver) give(c *socket.Conn, p peer, version int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.control == nil {
		return errGiven
	}
	to := &receiver{Conn: c, peer: p, timeout: g.timeout}
	begin := time.Now()
	err := g.giveAll(to, version)
	took := time.Since(begin)
	// Only now: nobody needs these closed, as the new process calls shutdown(2) when one ends. And if
	// this process ends now, the kernel closes them more cheaply.
	go func() {
		closeAll(to.moved)
		g.server.free(len(to.moved))
	}()
	if err != nil {
		return fmt.Errorf("%w; connections moved: %d, still here: %d", err, len(to.moved), g.server.count())
	}
	log.Printf("taken over by %v: connections moved: %d, in %v", p, len(to.moved), took.Round(time.Microsecond))
	g.leave()
	return nil
}

// giveAll makes one offer after the other.
func (g *giver) giveAll(to *receiver, version int) (err error) {
	defer func() {
		if err != nil {
			// Without a word the new process would take this one for dead, and all for its own. Whatever
			// it may still say is about nothing: no offer is open.
			_ = withdraw(to.Conn, err)
		}
	}()
	everything := content{What: "listeners", Version: version, Clients: g.server.count(), Totals: g.server.now()}
	fds, err := g.descriptors()
	if err == nil {
		err = to.offer(everything, fds...)
	}
	if err != nil {
		return err
	}
	idle, busy := g.server.list()
	if err := g.giveSessions(to, idle, g.server.batch, g.timeout); err != nil {
		return err
	}
	if err := g.giveSessions(to, busy, min(g.server.batch, busyBatch), g.timeout); err != nil {
		return err
	}
	g.server.shut()
	// Those who have come meanwhile, and those who were late: once more, but who connects now waits for it.
	idle, busy = g.server.list()
	err = g.giveSessions(to, append(idle, busy...), g.server.batch, min(g.timeout, 250*time.Millisecond))
	if err == nil {
		g.told = g.server.now()
		err = to.offer(content{What: "done", Totals: g.told})
	}
	if err != nil {
		g.server.open(g.server.listeners)
	}
	return err
}

// receiver is the new process, in conversation.
type receiver struct {
	*socket.Conn
	peer    peer
	timeout time.Duration
	moved   []*session // the connections that it has taken
}

// offer offers something, with descriptors, which stay the caller's. After nil the new process has it.
// If that took it in the last moment, the conversation is over, and the next offer fails.
func (r *receiver) offer(what content, fds ...int) error {
	_, err := offer(r.Conn, r.peer, r.timeout, func() error {
		return sendMessage(r.Conn, message{Type: "offer", content: what}, fds...)
	})
	return err
}

// busyBatch is how many connections that are talking move at once. To stand still costs them time,
// as it does not those that are silent.
const busyBatch = 16

// giveSessions gives sessions, in batches of at most so many. Those that do not stop in time stay: one
// that is busy with something else, say.
func (g *giver) giveSessions(to *receiver, list []*session, most int, patience time.Duration) error {
	st := &standstill{halt: g.server.halt, still: make(chan *session, len(list)), next: list}
	defer func() {
		for _, s := range st.release(list) {
			g.server.serve(s)
		}
	}()
	st.ask(most)
	for st.asked > 0 {
		batch, patient := st.gather(most, patience)
		moving := batch[:0]
		for _, s := range batch {
			switch {
			case s.over:
			case s.stays.Load(): // it has just said so
				g.server.serve(s)
			default:
				moving = append(moving, s)
			}
		}
		if err := g.giveBatch(to, moving); err != nil {
			return err
		}
		if !patient {
			break
		}
		// The next ones: as many as there is room for in a batch beside those who stand or are late; or
		// others, if all are late.
		n := most - st.asked
		if len(batch) == 0 {
			n = most
		}
		st.ask(n)
	}
	return nil
}

// giveBatch gives sessions that stand still.
func (g *giver) giveBatch(to *receiver, batch []*session) error {
	if len(batch) == 0 {
		return nil
	}
	what, fds, err := pack(batch)
	if errors.Is(err, errUnfit) && len(batch) == 1 {
		log.Printf("a connection stays: %v", err)
		batch[0].stays.Store(true)
		g.server.serve(batch[0])
		return nil
	}
	if errors.Is(err, errUnfit) {
		half := len(batch) / 2
		if err := g.giveBatch(to, batch[:half]); err != nil {
			for _, s := range batch[half:] {
				g.server.serve(s)
			}
			return err
		}
		return g.giveBatch(to, batch[half:])
	}
	if err == nil {
		err = to.offer(what, fds...)
		unix.Close(fds[0]) // the memfd
	}
	if err != nil {
		for _, s := range batch {
			g.server.serve(s)
		}
		return err
	}
	g.server.remove(batch...)
	to.moved = append(to.moved, batch...)
	for _, s := range batch {
		s.forget()
	}
	return nil
}

// standstill makes sessions stand still, some at a time. Whoever stands is packed: nobody waits for the
// slowest of a batch.
type standstill struct {
	halt  func(*session, chan<- *session)
	still chan *session // with room for all
	asked int           // how many have been asked, and have not come yet
	next  []*session    // who is to be asked next
}

// ask asks the next ones.
func (st *standstill) ask(n int) {
	for _, s := range st.next[:min(max(n, 0), len(st.next))] {
		st.halt(s, st.still)
		st.next = st.next[1:]
		st.asked++
	}
}

// company is how long one that stands waits for others, to move in their company.
const company = time.Millisecond

// gather returns those who stand still by now, or have ended: at least one, if one comes in time.
func (st *standstill) gather(most int, patience time.Duration) (batch []*session, inTime bool) {
	if len(st.next) > 0 {
		patience = company // and then others are asked
	}
	late := time.After(patience)
	for bytes := 0; len(batch) < most && st.asked > 0 && bytes < cutBytes; {
		select {
		case s := <-st.still:
			st.asked--
			batch, bytes = append(batch, s), bytes+s.bytes()
			if len(batch) == 1 {
				late = time.After(company)
			}
		case <-late:
			return batch, len(batch) > 0 || len(st.next) > 0
		}
	}
	return batch, true
}

// release takes the request back from all of the list that have been asked and do not stand yet, and
// returns those that do.
func (st *standstill) release(list []*session) (standing []*session) {
	for _, s := range list {
		if s.release() {
			st.asked--
		}
	}
	for ; st.asked > 0; st.asked-- {
		if s := <-st.still; !s.over {
			standing = append(standing, s)
		}
	}
	return standing
}
