//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
)

// The old process's side of a takeover. Every offer is step 04's: it is taken, or it is still
// ours. The listeners are lent with the first, so that the new process accepts from then on; they
// are its own when the last is taken, or when this process dies. If anything goes wrong before
// that, this process says so (withdraw), and serves on with all that is left.

// meet hands everything over to a process that asks for it.
func (s *server) meet(c *socket.Conn) {
	to, err := s.welcome(c)
	switch {
	case err == nil:
	case s.accepting.Err() != nil, errors.Is(err, io.EOF): // it only looked whether anybody is here
		return
	default:
		log.Print(err)
		return
	}
	defer s.vacate(to)
	s.moving.Lock()
	defer s.moving.Unlock()
	if s.accepting.Err() != nil {
		return // it is too late for that
	}
	begin := time.Now()
	moved, err := s.handOver(to)
	if err != nil {
		log.Printf("not taken over: %v; connections moved: %d, still here: %d", err, moved, s.sessions.count())
		return
	}
	log.Printf("taken over by %v: connections moved: %d, in %v", to.to, moved, time.Since(begin).Round(time.Microsecond))
	close(s.succeeded)
}

// welcome says hello to a process that may take over.
func (s *server) welcome(c *socket.Conn) (to *giver, err error) {
	s.greeting.Lock()
	defer s.greeting.Unlock()
	_, err = greet(s.accepting, c, s.counted.now().Generation, func(p peer) error {
		if err := sameUser(p); err != nil {
			return err
		}
		to = newGiver(c, p, s.timeout)
		return s.reserve(to)
	})
	if err != nil {
		s.vacate(to)
		return nil, err
	}
	return to, nil
}

// reserve makes the process behind to the next one, if there is none yet.
func (s *server) reserve(to *giver) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		return fmt.Errorf("pid %d is taking over already: wait until it has", s.next.to.pid)
	}
	s.next = to
	return nil
}

// vacate lets another process try, if it is to whose turn it was.
func (s *server) vacate(to *giver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if to != nil && s.next == to {
		s.next = nil
	}
}

// handOver gives everything to the new process, or takes back what it has not taken.
func (s *server) handOver(to *giver) (moved int, err error) {
	defer pauseGC()()
	supervisor("RELOADING=1", monotonic())
	h := handover{to, make(chan message)}
	go to.listen(h.answers)
	defer to.stop()
	moved, err = s.giveAll(h)
	if err != nil {
		h.callOff(err)
		s.takeBackListeners()
		return moved, err
	}
	h.awaitHangup()
	return moved, nil
}

// giveAll makes one offer after the other. After an error its offer, and what has not been
// offered yet, is still ours.
func (s *server) giveAll(h handover) (moved int, err error) {
	if err := s.giveListeners(h); err != nil {
		return 0, err
	}
	if moved, err = s.giveSessions(h); err != nil {
		return moved, err
	}
	s.control.shut() // who connects from now on waits for the new process
	done, err := pack(kindDone, nil, luggage{Totals: s.counted.now()})
	if err != nil {
		return moved, err
	}
	return moved, h.give(done)
}

func (s *server) giveListeners(h handover) error {
	for _, l := range s.listeners {
		l.shut()
	}
	if err := s.spare.use(); err != nil {
		return err
	}
	p, err := s.packListeners()
	if err != nil {
		return err
	}
	return h.give(p)
}

// takeBackListeners lets clients, and the next process, in again.
func (s *server) takeBackListeners() {
	if err := s.spare.keep(); err != nil {
		log.Printf("no descriptors to spare for the next takeover: %v", err)
	}
	s.control.open()
	for _, l := range s.listeners {
		l.open()
	}
	supervisor("READY=1", fmt.Sprintf("MAINPID=%d", os.Getpid()))
}

// giveSessions gives batch after batch. It is called when the listeners are shut: no session is
// added any more.
func (s *server) giveSessions(h handover) (moved int, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	batches := s.prepare(ctx, s.sessions.list())
	defer func() {
		cancel()
		for b := range batches {
			b.goOn()
		}
	}()
	for b := range batches {
		if b.err != nil {
			b.goOn()
			return moved, b.err
		}
		if err := h.give(b.parcel); err != nil {
			releaseAll(b.sessions, goOn)
			return moved, err
		}
		releaseAll(b.sessions, leave)
		s.sessions.remove(b.sessions...)
		moved += len(b.sessions)
	}
	return moved, nil
}

// handover is the conversation with the new process.
type handover struct {
	to      *giver
	answers chan message
}

// give offers a parcel, and closes it.
func (h handover) give(p parcel) error {
	defer closeQuietly(p) // it is in memory, and has been sent
	err := h.to.exchange(context.Background(), offer{parcel: p}, h.answers)
	if isGone(err) {
		return fmt.Errorf("%v went away: %w", h.to.to, err)
	}
	return err
}

// callOff tells the new process that it has got all that it will get. Without a word it would take
// us for dead, and the listeners for its own.
func (h handover) callOff(reason error) {
	if !h.to.over {
		h.to.withdraw(context.Background(), 0, reason, h.answers)
	}
}

// awaitHangup waits until the new process has told the supervisor who serves now: before that,
// this process must not be seen to end.
func (h handover) awaitHangup() {
	late := time.After(h.to.timeout)
	for {
		select {
		case _, open := <-h.answers:
			if !open {
				return
			}
		case <-late:
			log.Printf("%v has not hung up within %v", h.to.to, h.to.timeout)
			return
		}
	}
}

// batch is one offer's worth of sessions that stand still.
type batch struct {
	sessions []*session
	parcel
	err error // there is no parcel
}

// goOn is for a batch that is not offered any more.
func (b batch) goOn() {
	releaseAll(b.sessions, goOn)
	if b.err == nil {
		closeQuietly(b.parcel) // as in give
	}
}

// prepare makes batches of the sessions that may be moved. It is one ahead: while a batch is being
// taken, the next one stops. So two at most stand still at a time. Sessions that do not stop at once
// come last, so that no others stand still and wait for them; and if they do not stop then, they
// stay.
func (s *server) prepare(ctx context.Context, all []*session) <-chan batch {
	batches := make(chan batch)
	go func() {
		defer close(batches)
		busy := s.prepareSome(ctx, all, s.timeout/10, batches)
		busy = s.prepareSome(ctx, busy, s.timeout, batches)
		if len(busy) > 0 {
			log.Printf("connections that could not be stopped, and stay: %d", len(busy))
		}
	}()
	return batches
}

func (s *server) prepareSome(ctx context.Context, list []*session, patience time.Duration, batches chan<- batch) (busy []*session) {
	list = slices.DeleteFunc(list, (*session).staysHere)
	for some := range slices.Chunk(list, s.batch) {
		if ctx.Err() != nil {
			return nil
		}
		halted := uptime()
		still, late := halt(some, patience)
		busy = append(busy, late...)
		still = slices.DeleteFunc(still, func(c *session) bool {
			stays := c.staysHere() // it has just been told to
			if stays {
				c.release(goOn)
			}
			return stays
		})
		p, err := s.packSessions(still, halted)
		batches <- batch{still, p, err} // giveSessions offers it, or lets it go on
	}
	return busy
}

// packListeners packs the control socket and all listeners.
func (s *server) packListeners() (parcel, error) {
	id, err := identify(s.control)
	if err != nil {
		return parcel{}, err
	}
	file := s.control.file
	states := []listenerState{{Cookie: id.cookie, Dev: file.dev, Ino: file.ino}}
	sockets := []syscall.Conn{s.control}
	for _, l := range s.listeners {
		id, err := identify(l)
		if err != nil {
			return parcel{}, err
		}
		states, sockets = append(states, listenerState{Cookie: id.cookie, Asked: l.asked}), append(sockets, l)
	}
	return pack(kindListeners, sockets, luggage{Totals: s.counted.now(), Listeners: states})
}

// packSessions packs sessions that stand still.
func (s *server) packSessions(list []*session, halted time.Duration) (parcel, error) {
	l := luggage{Totals: s.counted.now(), Halted: halted, States: map[int]state{}}
	var sockets []syscall.Conn
	for i, c := range list {
		sockets, l.Cookies = append(sockets, c), append(l.Cookies, c.cookie)
		if !c.empty() {
			l.States[i] = c.state
		}
	}
	return pack(kindConnections, sockets, l)
}
