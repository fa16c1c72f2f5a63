//go:build linux

package main

// The keeper: it accepts, has a descriptor of everything, and starts one server after the other. It does
// nothing with a client's bytes, so no client can do anything to it. To copy: with what serve.go names. It
// promises that its death closes no connection, unless the server is dead too. It takes the process over:
// SIGINT and SIGTERM end it, and its servers with it, by os.Exit.

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	spareFDs = 64 // descriptors that are not for clients: a rescue needs some
	fewFDs   = 16 // and with less than that for clients it is not worth it
	looks    = 8  // so often within the patience the keeper looks whether the server has moved
	chances  = 3  // so many servers may die of one line

	pause = 100 * time.Millisecond // before a process is started in the place of one that has just been started
)

type keeper struct {
	free chan int      // slots
	turn chan struct{} // whoever has put something in serves

	same [slots]atomic.Int32 // so many looks have shown the same, one after the other

	mu       sync.Mutex              // held while any of what follows is changed or sent: a server always receives
	estate                           // everything
	server   atomic.Pointer[partner] // who has it too; nil: nobody just now
	children [2]*partner             // that one and the spare one, whichever is which
}

// runKeeper serves addr with one server after the other. A patience of less than 100 ms counts as that. A
// keeper that resumes gets everything from the server that has started it.
func runKeeper(addr string, patience time.Duration, resume bool) (err error) {
	k := &keeper{free: make(chan int, slots), turn: make(chan struct{}, 1)}
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // cannot fail: getrlimit(2)
	if limit.Cur < spareFDs+fewFDs {
		return fmt.Errorf("a process may have %d descriptors here, and this one needs at least %d: raise ulimit -n", limit.Cur, spareFDs+fewFDs)
	}
	if resume {
		k.children[0], err = parent()
	}
	if err != nil {
		return err
	}
	exitOnSignal(k.end) // before takeBack: that server would start another keeper
	patience = max(patience, 100*time.Millisecond)
	if resume {
		err = k.takeBack(addr, patience)
	} else {
		err = k.open(addr, patience)
	}
	if err != nil {
		return err
	}
	for slot := 1; slot < slots && uint64(slot) < limit.Cur-spareFDs; slot++ {
		if _, used := k.held[slot]; !used {
			k.free <- slot
		}
	}
	go k.watch()
	go k.keepOne(0)
	go k.keepOne(1)
	return k.acceptAll()
}

// open makes the listener and the memory.
func (k *keeper) open(addr string, patience time.Duration) error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // progressOf says why
	config.Control = func(_, _ string, raw syscall.RawConn) (err error) {
		failed := raw.Control(func(fd uintptr) { // before listen(2): who is accepted inherits the options
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)) // progressOf says why
		})
		return errors.Join(failed, err)
	}
	network := "tcp"
	if strings.HasPrefix(addr, "0.0.0.0:") {
		network = "tcp4" // of "tcp" and 0.0.0.0 package net makes [::], which is IPv6 as well
	}
	l, err := config.Listen(context.Background(), network, addr)
	if err != nil {
		return fmt.Errorf("%w: choose another with -addr, or stop what has it (ss -ltnp)", err)
	}
	defer l.Close() // the duplicate stays
	k.estate = estate{addr: l.Addr().String(), patience: patience, held: map[int]int{}}
	err = borrow(l.(*net.TCPListener), func(fd int) (err error) {
		k.listener, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	k.memory, err = createMemory()
	return err
}

// takeBack gets everything from the server that has started this process.
func (k *keeper) takeBack(addr string, patience time.Duration) (err error) {
	server := k.children[0]
	k.estate, err = inherited(addr, patience)
	for m := (message{}); err == nil && m.Type != "all"; {
		var fds []int
		if m, fds, err = receive(server.Conn); err == nil {
			err = k.add(m, fds)
		}
	}
	k.turn <- struct{}{}
	k.server.Store(server)
	return err
}

// end ends a keeper that is told to end. A server would start another one, so they go first.
func (k *keeper) end() {
	k.mu.Lock() // for good: nothing is started or given any more
	for _, child := range k.children {
		if child != nil {
			child.fence()
		}
	}
}

// keepOne keeps one child: a spare server until its turn comes, and then the server. When that has died,
// it starts another. Two of these make a server and a spare one. A keeper that resumes has a server already.
func (k *keeper) keepOne(child int) {
	if server := k.children[child]; server != nil {
		_ = k.with(server, true) // nil, as it has got everything
	}
	for {
		began := time.Now()
		k.mu.Lock()
		p, err := k.start("server")
		k.children[child] = p
		k.mu.Unlock()
		if err == nil {
			select {
			case k.turn <- struct{}{}:
				err = k.with(p, false)
			case <-p.dead:
				k.mu.Lock() // not while this process is ending
				p.fence()
				k.mu.Unlock()
				err = fmt.Errorf("spare server pid %d has ended", p.pid)
			}
		}
		if err != nil {
			log.Printf("%v: starting another one", err)
		}
		// Not at full speed, if one after the other fails at once; and not while the next server begins.
		if err != nil && time.Since(began) < pause || len(k.turn) > 0 {
			time.Sleep(pause)
		}
	}
}

// with has a server serve until it is dead. It is given everything, if it has not got it already: an
// error is that it has not come so far.
func (k *keeper) with(server *partner, hasAll bool) (failed error) {
	k.mu.Lock()
	k.same[0].Store(0) // the heart is another one
	k.server.Store(server)
	if !hasAll {
		failed = k.sendTo(server.Conn)
	}
	err := failed
	if err == nil {
		log.Printf("server pid %d has everything: connections %d; listening on %s", server.pid, len(k.held), k.addr)
	}
	k.mu.Unlock()
	for err == nil {
		err = k.hear(server)
	}
	server.kill() // if it lives, somebody with the mutex may be waiting for it
	k.mu.Lock()
	defer k.mu.Unlock()
	server.fence()
	log.Printf("server pid %d is dead: %v", server.pid, err)
	k.server.Store(nil)
	k.blame()
	<-k.turn
	return failed
}

// hear waits for a message: that connections are over. A server that says anything else is not to be
// trusted: that is an error.
func (k *keeper) hear(server *partner) error {
	m, fds, err := receive(server.Conn)
	closeFDs(fds)
	if err == nil && (m.Type != "done" || len(fds) > 0) {
		err = fmt.Errorf("a message %q with %d descriptors", m.Type, len(fds))
	}
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, slot := range m.Slots {
		if _, used := k.held[slot]; !used {
			return fmt.Errorf("slot %d is done, and not in use", slot)
		}
		k.release(slot)
	}
	return nil
}

// release ends what this process has of a connection, when no server has anything of it any more.
func (k *keeper) release(slot int) {
	unix.Close(k.held[slot])
	delete(k.held, slot)
	k.free <- slot
}

// watch kills a server that stands still: at one look after the other a line is worked on, and it is
// the same; or the heartbeat has not moved. It counts looks, and not time: when all of us are stopped
// (Ctrl-Z), nobody looks. It takes no mutex: whoever has that may be waiting for this very server to
// receive, and this ends the wait.
func (k *keeper) watch() {
	for last := make([]uint64, slots); ; {
		time.Sleep(k.patience / looks)
		k.look(last)
	}
}

// look compares the words with those of the last look.
func (k *keeper) look(last []uint64) {
	server := k.server.Load() // before the words: what they say is not the fault of one that comes now
	for slot := range last {
		now := k.memory.word(slot).Load()
		if now != last[slot] || now&busy == 0 && slot > 0 {
			last[slot] = now
			k.same[slot].Store(0)
		} else if k.same[slot].Add(1) == looks && server != nil {
			log.Printf("server pid %d hangs (slot %d): killing it", server.pid, slot)
			server.kill()
		}
	}
}

// blame gives each line a strike that a dead server was working on. After the third the connection is
// given up: the next server would die of it too.
func (k *keeper) blame() {
	for slot := 1; slot < slots; slot++ {
		word := k.memory.word(slot)
		was := word.Load()
		if was&busy == 0 {
			continue
		}
		fd, used := k.held[slot]
		if !used { // it has lied, and watch looks at all words
			word.Store(0)
			continue
		}
		word.Store(was - busy + strike)
		if strikes := was%position/strike + 1; strikes >= chances {
			log.Printf("giving slot %d up: %d servers have died while they worked on its byte %d", slot, strikes, was/position)
			unix.Shutdown(fd, unix.SHUT_RDWR) // fails if the client has reset it
			k.memory.release(slot)
			k.release(slot)
		}
	}
}

var errFull = errors.New("every slot has a connection (more of them: ulimit -n)")

// acceptAll accepts clients, as long as there are slots, and gives them to the server. Errors are
// reported and waited out, as in step 01.
func (k *keeper) acceptAll() error {
	listener, err := socket.New(k.listener, "listener")
	if err != nil {
		return err
	}
	var reported time.Time
	report := func(why error) {
		if time.Since(reported) > time.Minute {
			reported = time.Now()
			log.Printf("%v: clients wait in the accept queue until it works again", why)
		}
	}
	for {
		if len(k.free) == 0 {
			report(errFull)
		}
		slot := <-k.free
		err := listener.ReadFunc(context.Background(), "accept4", func(listener int) error {
			k.mu.Lock() // before: if this process dies between accept4 and sendmsg, that client is lost
			defer k.mu.Unlock()
			fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			k.begin(slot, fd)
			return nil
		})
		if err != nil {
			k.free <- slot
			report(err)
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// begin gives a new connection to the server, if there is one. Nothing of what had the slot before is left:
// that may have been lost with the last keeper, or in the hands of a liar. And its first line is another one
// than the last one's, with the same word.
func (k *keeper) begin(slot, fd int) {
	k.held[slot] = fd
	k.memory.release(slot)
	k.memory.word(slot).Store(0)
	k.same[slot].Store(0)
	if server := k.server.Load(); server != nil && k.sendSome(server.Conn, slot) != nil {
		server.kill() // if it is not dying: then the next one gets it with the rest
	}
}
