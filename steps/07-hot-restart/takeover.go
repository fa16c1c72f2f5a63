//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// The new process's side of a takeover.

// meetTries bounds how often a process that found another one looks again after that has ended
// before it gave anything.
const meetTries = 5

// begin makes this process the next one, or the first if there is none. After an error it
// may have connections, and listeners that are another's.
func (s *server) begin(ctx context.Context) (err error) {
	for range meetTries {
		control, dialErr := dialControl(s.path)
		switch {
		case dialErr == nil:
			err = s.takeOver(ctx, control)
			closeQuietly(control)
		case errors.Is(dialErr, unix.ENOENT), errors.Is(dialErr, unix.ECONNREFUSED):
			err = s.beFirst(ctx)
		default:
			return dialErr
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, errVanished) {
			return err
		}
	}
	return err
}

// pauseGC keeps the garbage collector from looking through thousands of stacks, until collect is
// called.
func pauseGC() (collect func()) {
	percent := debug.SetGCPercent(-1)
	return sync.OnceFunc(func() { debug.SetGCPercent(percent) })
}

// errVanished: the other process was there, and then it was not, and nothing has been lost.
var errVanished = errors.New("the other process has just ended")

// beFirst begins without another process.
func (s *server) beFirst(ctx context.Context) error {
	control, err := listenControl(ctx, s.path)
	if err != nil {
		if other, dialErr := dialControl(s.path); dialErr == nil { // somebody was quicker
			return errors.Join(errVanished, other.Close())
		}
		return err
	}
	inherited, err := activated()
	if err == nil {
		err = s.listen(inherited)
	}
	if err != nil {
		return errors.Join(err, control.Close())
	}
	s.control = newMeetingPoint(control)
	s.acceptNext()
	return nil
}

// takeOver takes what the process at the other end gives, and serves it from the moment it is
// taken. It returns nil when this process is the one that serves: the other has given all, or has
// died after it had begun to.
func (s *server) takeOver(ctx context.Context, control *socket.Conn) (err error) {
	// To be ready before it asks: what can be opened is open by then.
	if s.opened, err = openFree(s.asked); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(s.opened)) }() // those that are not in use
	old, err := greet(ctx, control, 0, sameUserOrRoot)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %w", errVanished, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: is it stopped? Then send it SIGCONT, or SIGKILL", err)
	case err != nil:
		return err
	}
	log.Printf("taking over from %v, generation %d", old, old.generation)
	begin := time.Now()
	got, err := s.takeAll(ctx, &taker{old, control})
	switch {
	case err == nil:
		log.Printf("taken over from %v: connections moved: %d, in %v; none stood still for longer than %v",
			old, got.connections, time.Since(begin).Round(time.Microsecond), got.longestHalt.Round(time.Microsecond))
	case ctx.Err() != nil:
		return fmt.Errorf("told to end before all was taken over: %w", ctx.Err())
	case errors.Is(err, io.EOF) && s.control == nil:
		return fmt.Errorf("%w: %v", errVanished, old)
	case errors.Is(err, io.EOF):
		log.Printf("%v has ended before it had given all; connections that came before: %d", old, got.connections)
	default:
		return err
	}
	return s.own()
}

// taken is what has come.
type taken struct {
	connections int
	longestHalt time.Duration // how long one of them stood still, at most
}

// takeAll takes one parcel after the other. Its error is io.EOF if the other process ends before
// it has given all.
func (s *server) takeAll(ctx context.Context, from *taker) (got taken, err error) {
	// Within a moment the heap grows to what it will be. Collecting on the way only costs time.
	collect := pauseGC()
	defer collect()
	for {
		p, err := s.takeNext(ctx, from, collect)
		if err != nil {
			return got, err
		}
		s.counted.before.Store(&p.Totals)
		switch p.kind {
		case kindListeners:
			if err := s.lend(p); err != nil {
				return got, err
			}
		case kindConnections:
			for i, conn := range p.sockets {
				s.adopt(s.sessions.add(newSession(conn, p.Cookies[i], p.States[i])))
			}
			got.connections += len(p.sockets)
			got.longestHalt = max(got.longestHalt, uptime()-p.Halted)
		case kindDone:
			return got, nil
		}
	}
}

// takeNext waits for the next parcel. It has no time-out: while the other process is silent,
// nothing is lost by serving what is here already, and only its end tells who owns the rest. But
// from then on this is no matter of moments any more, and collect is called.
func (s *server) takeNext(ctx context.Context, from *taker, collect func()) (stolen, error) {
	defer time.AfterFunc(2*s.timeout, func() {
		collect()
		log.Printf("waiting for %v, which is silent: is it stopped? Then what it has not given yet is served after its SIGCONT", from.from)
	}).Stop()
	p, err := from.take(ctx)
	if err != nil {
		return stolen{}, err
	}
	if first := p.kind == kindListeners; first != (s.control == nil) {
		return stolen{}, errors.Join(fmt.Errorf("%v broke the protocol: %q out of turn", from.from, p.kind), p.Close())
	}
	return p, nil
}

// lend makes listeners of the first parcel, and accepts from them.
func (s *server) lend(p stolen) error {
	control, err := adoptMeetingPoint(p.sockets[0], s.path, fileID{p.Listeners[0].Dev, p.Listeners[0].Ino})
	if err != nil {
		return errors.Join(err, p.Close())
	}
	s.control = control
	var have []*listener
	for i, f := range p.sockets[1:] {
		l, err := adoptListener(f, p.Listeners[i+1].Asked)
		if err != nil {
			return errors.Join(err, closeAll(have), p.Close())
		}
		have = append(have, l)
	}
	have, s.opened = append(have, s.opened...), nil
	return s.listen(have)
}

// listen serves those of the listeners that are asked for, and opens the ones that are missing.
// It owns the listeners: after an error they are closed.
func (s *server) listen(have []*listener) error {
	asked := s.asked
	if len(asked)+len(have) == 0 {
		asked = []string{defaultAddr}
	}
	wanted, surplus, missing := choose(asked, have)
	opened, err := openAll(missing)
	if len(surplus) > 0 && errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w; or is it part of %v, which is not asked for any more, and still open? Then ask for that once more", err, surplus[0].Addr())
	}
	if err != nil {
		return errors.Join(err, closeAll(have))
	}
	s.mu.Lock()
	s.listeners, s.surplus = append(wanted, opened...), surplus
	s.mu.Unlock()
	for _, l := range s.listeners {
		s.acceptFrom(l)
	}
	return nil
}

// own makes what was lent this process's own. Listeners that are not asked for any more are
// closed, when all who wait in their queues have been let in. If that fails, such as for want of
// descriptors, it is no reason to give up the others.
func (s *server) own() error {
	for _, l := range s.surplus {
		log.Printf("no longer listening on %v", l.Addr())
		if err := errors.Join(l.waiting(s.admitAndAdopt), l.Close()); err != nil {
			log.Printf("clients that waited at %v: %v", l.Addr(), err)
		}
	}
	s.surplus = nil
	if err := s.control.own(); err != nil {
		return err
	}
	s.acceptNext()
	return nil
}

// admitAndAdopt serves a client that no accept loop has let in. It owns the connection.
func (s *server) admitAndAdopt(f *os.File) error {
	c, err := s.admit(f)
	if err == nil {
		s.adopt(c)
	}
	return err
}
