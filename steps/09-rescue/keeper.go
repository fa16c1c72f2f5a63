//go:build linux

package main

// The keeper: it accepts, has a descriptor of everything, and starts one server after the other. It does
// nothing with a client's bytes, so no client can do anything to it.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	spareFDs = 64 // descriptors that are not for clients
	hangs    = 8  // so many looks in a row, at even times within the patience, must find a server in the same place
	chances  = 3  // so many servers may die of one line
)

type keeper struct {
	control  *controlSocket // its accept queue is the line of spare servers
	path     string
	patience time.Duration
	accepts  *socket.Conn // the listener

	mu sync.Mutex // guards what follows, and is held while any of it is sent
	estate
	server  *partner // nil: there is none just now
	free    []int    // slots
	strikes map[int]strike
}

// strike is how often servers have died while they worked on the line at a position.
type strike struct {
	at    uint64
	times int
}

// runKeeper serves addr with one server after the other. A keeper that resumes gets everything from
// the server that started it.
func runKeeper(addr, path string, patience time.Duration, resume bool) error {
	k := &keeper{path: path, patience: patience, strikes: map[int]strike{}}
	var first *partner // a server that has everything
	var err error
	if resume {
		first, err = k.takeBack()
	} else {
		err = k.open(addr)
	}
	if err != nil {
		return err
	}
	if k.control, err = listenControl(path); err != nil {
		return err
	}
	exitOnSignal(k.end)
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // cannot fail: getrlimit(2)
	for slot := min(slots, limit.Cur-spareFDs) - 1; slot > 0; slot-- {
		if _, used := k.held[int(slot)]; !used {
			k.free = append(k.free, int(slot))
		}
	}
	if k.accepts, err = socket.New(k.listener, "listener"); err != nil {
		return err
	}
	go k.acceptAll()
	go k.keepOne()
	if resume {
		k.with(first, false) // it is no child of this process
	}
	go k.keepOne()
	for {
		k.with(k.next(), true)
	}
}

// open makes the listener and the memory.
func (k *keeper) open(addr string) error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // progressOf says why
	network := "tcp"
	if strings.HasPrefix(addr, "0.0.0.0:") {
		network = "tcp4" // of "tcp" and 0.0.0.0 package net makes [::], which is IPv6 as well
	}
	l, err := config.Listen(context.Background(), network, addr)
	if err != nil {
		return fmt.Errorf("%w: choose another with -addr, or stop what has it (ss -ltnp)", err)
	}
	defer l.Close() // the duplicate stays
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	lent := raw.Control(func(fd uintptr) {
		k.listener, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		// What is accepted inherits these.
		err = errors.Join(err,
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)) // progressOf says why
	})
	if err := cmp.Or(lent, err); err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	k.addr, k.held = l.Addr().String(), map[int]int{}
	k.memory, err = createMemory()
	return err
}

// takeBack gets everything from the server that has started this process.
func (k *keeper) takeBack() (*partner, error) {
	unix.CloseOnExec(3)
	c, err := socket.New(3, "control")
	if err != nil {
		return nil, fmt.Errorf("descriptor 3: %w: -resume is for a server to use", err)
	}
	server, err := partnerAt(c)
	for err == nil && (k.held == nil || len(k.held) < k.count) {
		var m message
		var fds []int
		if m, fds, err = receive(c); err == nil {
			err = k.add(m, fds)
		}
	}
	return server, err
}

// end is how a keeper ends that is told to. A server would start another one, so that goes first.
func (k *keeper) end() {
	k.control.remove()
	k.mu.Lock() // for good: nothing is started or sent any more
	if k.server != nil {
		k.server.fence()
	}
}

// keepOne sees to it that there is one server more: when one has died, it starts another, which gets
// in line. Two of these make one that serves and a spare one, whichever is which.
func (k *keeper) keepOne() {
	for {
		k.mu.Lock()
		cmd, err := startSelf(nil, "-c", "-control", k.path, "-patience", k.patience.String())
		k.mu.Unlock()
		began := time.Now()
		if err == nil {
			err = cmd.Wait()
			log.Printf("server pid %d has ended: %v", cmd.Process.Pid, cmd.ProcessState)
		} else {
			log.Printf("start a server: %v", err)
		}
		if time.Since(began) < time.Second {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// next waits for the first server in line.
func (k *keeper) next() *partner {
	for {
		c, _, err := k.control.Accept(context.Background(), 0)
		if err == nil {
			var server *partner
			if server, err = partnerAt(c); err == nil {
				return server
			}
		}
		log.Printf("a server in line: %v", err)
		time.Sleep(time.Millisecond) // if it is for want of descriptors
	}
}

// with has a server serve, until it is dead.
func (k *keeper) with(server *partner, give bool) {
	over := make(chan struct{})
	go k.watch(server, over)
	k.mu.Lock()
	k.server = server
	var err error
	if give {
		err = k.sendTo(server.Conn)
	}
	n := len(k.held)
	k.mu.Unlock()
	if err == nil {
		log.Printf("server pid %d has everything: connections %d; listening on %s", server.pid, n, k.addr)
	}
	for err == nil {
		var m message
		var fds []int
		if m, fds, err = receive(server.Conn); err == nil {
			err = k.done(m, fds)
		}
	}
	server.fence()
	close(over)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.server = nil
	log.Printf("server pid %d: %v", server.pid, err)
	k.blame()
}

// done frees the slots of connections that a server has let go of. A server that says anything else is
// not to be trusted: it is an error.
func (k *keeper) done(m message, fds []int) error {
	closeFDs(fds)
	if m.Type != "done" || len(fds) > 0 {
		return fmt.Errorf("a message %q with %d descriptors", m.Type, len(fds))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, slot := range m.Slots {
		if _, used := k.held[slot]; !used {
			return fmt.Errorf("slot %d is not its own", slot)
		}
		k.release(slot)
	}
	return nil
}

// release ends what this process has of a connection. No server has anything of it any more.
func (k *keeper) release(slot int) {
	unix.Close(k.held[slot])
	delete(k.held, slot)
	delete(k.strikes, slot)
	k.memory.release(slot)
	k.free = append(k.free, slot)
}

// watch kills a server that stands still: which works on the same line at every one of so many looks.
// It counts looks, and not time: while all of us are stopped (Ctrl-Z), nobody looks. It takes no mutex,
// since whoever has that may be waiting for this very server.
func (k *keeper) watch(server *partner, over <-chan struct{}) {
	last, looks := make([]uint64, slots), make([]int, slots)
	for range time.Tick(k.patience / hangs) {
		select {
		case <-over:
			return
		default:
		}
		for slot := range last {
			now := k.memory.word(slot).Load()
			if now != last[slot] || now&busy == 0 && slot > 0 {
				last[slot], looks[slot] = now, 0
			} else if looks[slot]++; looks[slot] == hangs {
				log.Printf("server pid %d hangs (slot %d): killing it", server.pid, slot)
				server.kill() // fails if it is dead
			}
		}
	}
}

// blame counts, after a server's death, how often a server has died while it worked on the same line. At
// the third time the connection is given up: another server would die of it too.
func (k *keeper) blame() {
	for slot, fd := range k.held {
		word := k.memory.word(slot)
		now := word.Load()
		if now&busy == 0 {
			continue
		}
		word.Store(now&^busy | suspect)
		s := k.strikes[slot]
		if s.at != now/position {
			s = strike{at: now / position}
		}
		s.times++
		k.strikes[slot] = s
		if s.times == chances {
			log.Printf("giving slot %d up: %d servers have died while they worked on its byte %d", slot, s.times, s.at)
			unix.Shutdown(fd, unix.SHUT_RDWR) // fails if the client has reset it
			k.release(slot)
		}
	}
}

// acceptAll accepts. Errors are reported and waited out, as in step 01.
func (k *keeper) acceptAll() {
	for reported := (time.Time{}); ; {
		err := k.accept()
		if err == nil {
			continue
		}
		if time.Since(reported) > time.Minute {
			reported = time.Now()
			log.Printf("%v: clients wait in the accept queue until it works again", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

var errFull = errors.New("as many connections as there can be (ulimit -n)")

// accept accepts a client, and gives it to the server, if there is one. If not, or if that dies before
// it has got it, the next server gets it with the others.
func (k *keeper) accept() error {
	k.mu.Lock()
	full := len(k.free) == 0
	k.mu.Unlock()
	if full {
		return errFull
	}
	var fd int
	err := k.accepts.ReadFunc(context.Background(), "accept4", func(listener int) (err error) {
		fd, _, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	slot := k.free[len(k.free)-1]
	k.free = k.free[:len(k.free)-1]
	k.held[slot] = fd
	k.memory.word(slot).Store(0)
	if k.server != nil {
		k.sendSome(k.server.Conn, slot)
	}
	return nil
}
