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
	spareFDs = 64 // descriptors that are not for clients: a rescue needs some
	looks    = 8  // so often within the patience the keeper looks whether the server has moved
	chances  = 3  // so many servers may die of one line
)

type keeper struct {
	control  *controlSocket // its accept queue is the line of spare servers
	patience time.Duration
	free     chan int // slots

	mu      sync.Mutex // guards what follows, and is held while any of it is sent
	estate             // everything
	server  *partner   // who has it too; nil: nobody just now
	strikes map[int]strike
}

// strike is how many servers have died while they worked on the line at a position.
type strike struct {
	at    uint64
	times int
}

// runKeeper serves addr with one server after the other. A keeper that resumes gets everything from
// the server that has started it.
func runKeeper(addr, path string, patience time.Duration, resume bool) (err error) {
	k := &keeper{patience: patience, free: make(chan int, slots), strikes: map[int]strike{}}
	if resume {
		err = k.takeBack()
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
	for slot := 1; slot < slots && uint64(slot) < limit.Cur-spareFDs; slot++ {
		if _, used := k.held[slot]; !used {
			k.free <- slot
		}
	}
	go k.acceptAll()
	go k.keepOne()
	if resume {
		k.with(k.server) // no child of this process
	}
	go k.keepOne()
	for {
		k.with(nil)
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
	lendErr := raw.Control(func(fd uintptr) {
		// What is accepted inherits the options.
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)) // progressOf says why
		if err == nil {
			k.listener, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	if err := cmp.Or(lendErr, err); err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	k.addr, k.held = l.Addr().String(), map[int]int{}
	k.memory, err = createMemory()
	return err
}

// takeBack gets everything from the server that has started this process.
func (k *keeper) takeBack() error {
	unix.CloseOnExec(3)
	c, err := socket.New(3, "control")
	if err != nil {
		return fmt.Errorf("descriptor 3: %w: -resume is for a server to use", err)
	}
	k.server, err = partnerAt(c)
	for err == nil && (k.held == nil || len(k.held) < k.count) {
		var m message
		var fds []int
		if m, fds, err = receive(c); err == nil {
			err = k.add(m, fds)
		}
	}
	return err
}

// end ends a keeper that is told to end. A server would start another one, so that goes first.
func (k *keeper) end() {
	k.control.remove()
	k.mu.Lock() // for good: nothing is started or given any more
	if k.server != nil {
		k.server.fence()
	}
}

// keepOne keeps one child: when it has died, it starts another, which gets in line. Two of these make
// a server and a spare one, whichever is which.
func (k *keeper) keepOne() {
	for {
		k.mu.Lock()
		cmd, err := startSelf(nil, "-c", "-control", k.control.path, "-patience", k.patience.String())
		k.mu.Unlock()
		began := time.Now()
		if err == nil {
			cmd.Wait() // ProcessState has it
			log.Printf("server pid %d has ended: %v", cmd.Process.Pid, cmd.ProcessState)
		} else {
			log.Printf("start a server: %v", err)
		}
		if time.Since(began) < time.Second { // not in a loop at full speed
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// with has a server serve until it is dead: one that has everything, or else the first in line.
func (k *keeper) with(server *partner) {
	next := server == nil
	for server == nil {
		c, _, err := k.control.Accept(context.Background(), 0)
		if err == nil {
			server, err = partnerAt(c)
		}
		if err != nil {
			log.Printf("a server in line: %v", err)
			time.Sleep(time.Millisecond) // if it is for want of descriptors
		}
	}
	over, watching := make(chan struct{}), sync.WaitGroup{}
	watching.Go(func() { k.watch(server, over) })
	var err error
	k.mu.Lock()
	if k.server = server; next {
		err = k.sendTo(server.Conn)
	}
	if err == nil {
		log.Printf("server pid %d has everything: connections %d; listening on %s", server.pid, len(k.held), k.addr)
	}
	k.mu.Unlock()
	for err == nil {
		err = k.hear(server)
	}
	close(over)
	watching.Wait()
	server.kill() // if it lives, somebody with the mutex may be waiting for it
	k.mu.Lock()
	defer k.mu.Unlock()
	server.fence()
	log.Printf("server pid %d: %v", server.pid, err)
	k.server = nil
	k.blame()
}

// hear waits for a message: that connections are over. A server that says anything else is not to be
// trusted: that is an error.
func (k *keeper) hear(server *partner) error {
	m, fds, err := receive(server.Conn)
	closeFDs(fds)
	if err == nil && (m.Type != "done" || len(fds) > 0) {
		err = fmt.Errorf("a message %q with %d descriptors", m.Type, len(fds))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, slot := range m.Slots {
		if _, used := k.held[slot]; err == nil && !used {
			err = fmt.Errorf("slot %d is done, and not in use", slot)
		}
		if err == nil {
			k.release(slot)
		}
	}
	return err
}

// release ends what this process has of a connection, when no server has anything of it any more.
func (k *keeper) release(slot int) {
	unix.Close(k.held[slot])
	delete(k.held, slot)
	delete(k.strikes, slot)
	k.free <- slot
}

// watch kills a server that stands still: at one look after the other a line is worked on, and it is
// the same; or the heartbeat has not moved. It counts looks, and not time: when all of us are stopped
// (Ctrl-Z), nobody looks. It takes no mutex: whoever has that may be waiting for this very server.
func (k *keeper) watch(server *partner, over <-chan struct{}) {
	last, same := make([]uint64, slots), make([]int, slots)
	for {
		select {
		case <-over:
			return
		case <-time.After(k.patience / looks):
		}
		for slot := range last {
			now := k.memory.word(slot).Load()
			if now != last[slot] || now&busy == 0 && slot > 0 {
				last[slot], same[slot] = now, 0
			} else if same[slot]++; same[slot] == looks {
				log.Printf("server pid %d hangs (slot %d): killing it", server.pid, slot)
				server.kill()
			}
		}
	}
}

// blame counts, after a server's death, how many have died while they worked on the same line. After
// the third the connection is given up: the next server would die of it too.
func (k *keeper) blame() {
	for slot, fd := range k.held {
		word := k.memory.word(slot)
		was := word.Load()
		if was&busy == 0 {
			continue
		}
		word.Store(was&^busy | suspect)
		s := k.strikes[slot]
		if s.at != was/position {
			s = strike{at: was / position}
		}
		s.times++
		k.strikes[slot] = s
		if s.times == chances {
			log.Printf("giving slot %d up: %d servers have died while they worked on its byte %d", slot, s.times, s.at)
			unix.Shutdown(fd, unix.SHUT_RDWR) // fails if the client has reset it
			k.memory.release(slot)
			k.release(slot)
		}
	}
}

// acceptAll accepts clients, as long as there are slots, and gives them to the server. Errors are
// reported and waited out, as in step 01.
func (k *keeper) acceptAll() {
	listener, err := socket.New(k.listener, "listener")
	if err != nil {
		log.Fatal(err)
	}
	for reported := (time.Time{}); ; {
		slot := <-k.free
		err := listener.ReadFunc(context.Background(), "accept4", func(listener int) error {
			k.mu.Lock() // before: if this process dies between accept4 and sendmsg, that client is lost
			defer k.mu.Unlock()
			fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			k.held[slot] = fd
			k.memory.word(slot).Store(0)
			if k.server != nil {
				k.sendSome(k.server.Conn, slot) // fails if it is just dying: then the next one gets it with the rest
			}
			return nil
		})
		if err != nil {
			k.free <- slot
			if time.Since(reported) > time.Minute {
				reported = time.Now()
				log.Printf("%v: clients wait in the accept queue until it works again", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}
