//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"time"
)

// Stopping a session from outside, at any moment. A deadline in the past ends the read or write
// that its goroutine waits in, and tells exactly how far it came. Then the goroutine stands still,
// and leaves the session to whoever has asked, until it hears what becomes of it.

// standstill is a request to a session to stand still.
type standstill struct {
	still chan struct{}             // closed by the session: nothing reads, writes or changes it any more
	fate  chan func(*session) error // what the session does next; nil: it goes on. Holds one
}

// The fates of a session that has stood still: it goes on, or leaves.
var goOn func(*session) error

func leave(s *session) error {
	s.moved = true
	return errMoved
}

var errMoved = errors.New("left to the new process")

// past is a deadline that is over. (A zero Time would be no deadline.)
var past = time.Unix(1, 0)

// ask asks the session to stand still. An answer comes when the system call in which its
// goroutine is has been interrupted, or what it does otherwise is done.
func (s *session) ask() {
	s.asked.Store(&standstill{make(chan struct{}), make(chan func(*session) error, 1)})
	_ = s.SetDeadline(past) // it fails if the session is just ending, and then that is the answer
}

// stands waits until a session that was asked stands still. If it has not stopped when late ends,
// it goes on, and counts as busy; it may also have ended.
func (s *session) stands(late context.Context) (still, busy bool) {
	asked := s.asked.Load()
	select {
	case <-asked.still:
	case <-s.ended:
	case <-late.Done():
	}
	// If several are true, select chooses any. It may be late only for others.
	if isClosed(asked.still) {
		return true, false
	}
	if isClosed(s.ended) {
		return false, false
	}
	s.release(goOn)
	return false, true
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// release tells a session that was asked to stand still what to do now.
func (s *session) release(fate func(*session) error) {
	p := s.asked.Swap(nil)
	_ = s.SetDeadline(time.Time{}) // as in ask
	p.fate <- fate
}

// serve echoes until the client is done, or another fate befalls the session. It may be asked
// to stand still meanwhile, any number of times.
func (s *session) serve(show func(line []byte)) error {
	defer close(s.ended)
	for {
		err := s.echo(show)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		p := s.asked.Load()
		if p == nil {
			continue // released again already
		}
		close(p.still)
		if fate := <-p.fate; fate != nil {
			return fate(s)
		}
	}
}

// halt makes sessions stand still, and returns those that do, and those that have not stopped in
// time and go on. The others have ended.
func halt(list []*session, patience time.Duration) (still, busy []*session) {
	for _, c := range list {
		c.ask()
	}
	late, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range list {
		switch isStill, isBusy := c.stands(late); {
		case isStill:
			still = append(still, c)
		case isBusy:
			busy = append(busy, c)
		}
	}
	return still, busy
}

// releaseAll tells sessions that stand still what to do now.
func releaseAll(list []*session, fate func(*session) error) {
	for _, c := range list {
		c.release(fate)
	}
}
