//go:build linux

package main

// The server: it takes what the keeper has, serves it, and gives it to the next keeper.

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// server is one, or a spare one: then it has nothing yet.
type server struct {
	path     string
	patience time.Duration
	idle     time.Duration // after so long a silent client's pages are given back
	suspects sync.Mutex    // held while a suspect line is worked on

	mu     sync.Mutex // guards what follows, and is held while any of it is sent
	keeper *partner
	estate
}

// runServer connects to the keeper, and serves what that gives it. It ends as a server ends: killed. A
// spare one ends when the keeper does.
func runServer(path string, patience time.Duration) error {
	signal.Ignore(unix.SIGINT) // Ctrl-C goes to the keeper too, which knows what to do
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	s := &server{path: path, patience: patience, idle: 10 * time.Second}
	if s.keeper, err = partnerAt(c); err != nil {
		return err
	}
	log.Printf("waiting on %s", path)
	for {
		err := s.follow()
		if s.held == nil && errors.Is(err, errGone) {
			return nil
		}
		if !errors.Is(err, errGone) {
			return fmt.Errorf("from keeper pid %d: %w", s.keeper.pid, err)
		}
		log.Printf("keeper pid %d %v; starting another one", s.keeper.pid, err)
		s.keeper.fence() // only now its lock on the control path is free
		for err = s.startKeeper(); err != nil; err = s.startKeeper() {
			log.Printf("start a keeper: %v; trying again", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// follow takes what the keeper gives, until that is gone. And it moves the heartbeat: with the mutex,
// so that a server that is stuck with it in hand does not pass for a live one.
func (s *server) follow() error {
	for {
		s.keeper.SetReadDeadline(time.Now().Add(s.patience / looks))
		m, fds, err := receive(s.keeper.Conn)
		s.mu.Lock()
		switch {
		case err == nil:
			err = s.add(m, fds)
			for _, slot := range m.Slots {
				if err == nil {
					err = s.begin(slot)
				}
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = nil
		}
		if s.held != nil && err == nil {
			s.memory.word(0).Store(s.memory.word(0).Load() + position | busy)
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// begin serves a connection that the keeper has given. s.mu is held.
func (s *server) begin(slot int) error {
	c, err := socket.New(s.held[slot], "tcp")
	if err != nil {
		return err
	}
	go func() {
		if err := s.echo(c, slot); !errors.Is(err, io.EOF) {
			log.Printf("slot %d: %v", slot, err)
		}
		// Whoever has a descriptor can end the connection for everybody: shutdown(2). To close it is
		// not enough, as the keeper has another one. The slot is empty before anybody hears of it: a
		// keeper may die before it hears, and the next one is not told of a slot that is not in use.
		s.mu.Lock()
		defer s.mu.Unlock()
		c.CloseWrite() // fails if the client has ended it
		c.Close()
		s.memory.release(slot)
		delete(s.held, slot)
		send(s.keeper.Conn, message{Type: "done", Slots: []int{slot}}) // fails if it is gone
	}()
	return nil
}

// startKeeper starts a keeper in the place of a dead one, and gives it everything. Clients are served
// meanwhile.
func (s *server) startKeeper() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	cmd, err := startSelf([]*os.File{theirs}, "-resume", "-control", s.path, "-patience", s.patience.String())
	theirs.Close()
	if err != nil {
		unix.Close(pair[0])
		return err
	}
	defer func() { go cmd.Wait() }() // not before its pid has been looked up
	c, err := socket.New(pair[0], "control")
	if err != nil {
		return err
	}
	next, err := openPartner(c, cmd.Process.Pid)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keeper = next
	s.sendTo(c) // fails if it is gone: follow hears of it
	return nil
}
