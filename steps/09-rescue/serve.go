//go:build linux

package main

// The server: it takes what the keeper has, serves it, and gives it to the next keeper. To copy: with
// keeper.go, estate.go, partner.go, memory.go, counters.go, fdpass.go, socket.go and process.go. It promises
// that whatever kills it, the next one goes on with each connection, if your echo can (work.go). It takes
// the process over: it ignores SIGINT, and has the descriptors 3 to 6 from the keeper.

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// server is one, or a spare one: then it has nothing yet.
type server struct {
	idle      time.Duration // after so long a silent client's pages are given back
	alone     sync.RWMutex  // held for writing while a line is worked on that has its last chance
	hasEstate bool          // the keeper has given something, if only that there is nothing

	mu     sync.Mutex // guards what follows, and is not held while this process waits for the keeper
	keeper *partner
	estate
}

// runServer serves what the keeper gives. It ends as a server ends: killed. A spare one ends when the
// keeper does.
func runServer(addr string, patience time.Duration) (err error) {
	signal.Ignore(unix.SIGINT) // Ctrl-C goes to the keeper too, which knows what to do
	s := &server{idle: 10 * time.Second}
	if s.keeper, err = parent(); err != nil {
		return err
	}
	if s.estate, err = inherited(addr, patience); err != nil {
		return err
	}
	log.Print("ready")
	for began := (time.Time{}); ; began = time.Now() {
		err := s.follow()
		if !errors.Is(err, errGone) {
			return fmt.Errorf("from keeper pid %d: %w", s.keeper.pid, err)
		}
		if !s.hasEstate {
			return nil
		}
		log.Printf("keeper pid %d is dead: %v: starting another one", s.keeper.pid, err)
		s.keeper.fence()
		if time.Since(began) < time.Second { // not at full speed, if each dies at once
			time.Sleep(pause)
		}
		for err = s.startKeeper(); err != nil; err = s.startKeeper() {
			log.Printf("start a keeper: %v; trying again", err)
			time.Sleep(pause)
		}
	}
}

// follow takes what the keeper gives, until that is gone.
func (s *server) follow() error {
	for {
		m, fds, err := receive(s.keeper.Conn)
		if err == nil && !s.hasEstate {
			s.hasEstate = true
			go s.beat()
		}
		if err == nil {
			err = s.take(m, fds)
		}
		if err != nil {
			return err
		}
	}
}

// beat moves the heartbeat: with the mutex, so that a server that is stuck with it in hand does not pass
// for a live one.
func (s *server) beat() {
	for {
		s.mu.Lock()
		s.memory.word(0).Add(position)
		s.mu.Unlock()
		time.Sleep(s.patience / looks)
	}
}

// take begins to serve connections.
func (s *server) take(m message, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.add(m, fds); err != nil {
		return err
	}
	for i, slot := range m.Slots {
		go s.serve(slot, fds[i])
	}
	return nil
}

// serve serves a connection until it is over.
func (s *server) serve(slot, fd int) {
	c := os.NewFile(uintptr(fd), "tcp") // 2 system calls: package net would make 15, and change options
	p, err := progressOf(fd)
	if err == nil {
		err = s.echo(c, slot, p)
	}
	if !errors.Is(err, io.EOF) {
		log.Printf("slot %d: %v", slot, err)
	}
	// Release before done: a keeper may die before it hears, and the next one is not told of a slot that
	// is not in use. And done without the mutex, to the keeper that knows of this connection: the keeper
	// may be waiting until this process receives, and for that the mutex must be free.
	s.mu.Lock()
	unix.Shutdown(fd, unix.SHUT_WR) // fails if the client has ended it
	c.Close()                       // which is not enough, as the keeper has a descriptor too
	s.memory.release(slot)
	delete(s.held, slot)
	keeper := s.keeper
	s.mu.Unlock()
	send(keeper.Conn, message{Type: "done", Slots: []int{slot}}) // fails if it is gone
}

// startKeeper starts a keeper in the place of a dead one, and gives it everything. Clients are served
// meanwhile. (That is a send with the mutex held, but to one who does nothing else than receive.)
func (s *server) startKeeper() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.start("keeper")
	if err != nil {
		return err
	}
	if err := s.sendTo(next.Conn); err != nil {
		next.fence()
		return err
	}
	s.keeper = next
	return nil
}

// decide has f work on what comes next in a connection, and stores the word that f returns. A server
// that dies in it leaves a busy word: so it is known what it was about. The last chance is given with
// nothing beside it: if the server dies of that, there is only one to blame.
func (s *server) decide(word *atomic.Uint64, f func() uint64) {
	before := word.Load()
	lastChance := before%position/strike == chances-1
	if lastChance {
		s.alone.Lock()
	} else {
		s.alone.RLock()
	}
	word.Store(before | busy)
	word.Store(f())
	if lastChance { // not deferred: a panic would let others begin before the process is dead
		s.alone.Unlock()
	} else {
		s.alone.RUnlock()
	}
}
