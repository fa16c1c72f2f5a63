//go:build linux

package main

// One generation and the next: how they meet, what they have, and what they tell each other in the
// end. What is offered in between, and how, is in other files.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// giver gives everything that this process has to the next one.
type giver struct {
	server  *server
	timeout time.Duration // how long another process may take for each of its messages
	taken   chan struct{} // closed when one has everything, and serves

	mu      sync.Mutex     // held while everything is being given, and while what follows changes
	control *controlSocket // nil: another process has everything
	told    totals         // what that knows
	next    *socket.Conn   // to it
}

// acceptAll hears everyone who connects to the control socket, each in a goroutine of its own: one
// that is silent keeps nobody out.
func (g *giver) acceptAll(control *socket.Conn) {
	for {
		c, _, err := control.Accept(context.Background(), 0)
		if err == nil {
			go g.meet(c)
			continue
		}
		g.mu.Lock()
		closed := g.control == nil || g.control.Conn != control
		g.mu.Unlock()
		if closed {
			return
		}
		log.Print(err) // a shortage, which will pass: accept(2)
		time.Sleep(time.Second)
	}
}

// meet hears one process, and gives it everything.
func (g *giver) meet(c *socket.Conn) {
	p, err := peerOf(c)
	version := 0
	if err == nil {
		version, err = g.hear(c, p)
	}
	if err == nil {
		err = g.give(c, p, version)
	}
	if err != nil {
		if !errors.Is(err, errGiven) { // who hears nothing looks again, and finds the process that has it
			log.Printf("not taken over: %v", err)
			sendMessage(c, message{Type: "refused", Reason: err.Error()}) // fails if it is gone
		}
		c.Close()
		return
	}
	// It says "serving" when it does, and has told the supervisor whom to watch from now on. A
	// supervisor that saw this process end before that would think that the service has ended.
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := receiveMessage(c, 0); err != nil {
		log.Printf("%v has not said that it serves: %v", p, err)
	}
	g.next = c
	close(g.taken)
}

var errGiven = errors.New("another process has taken over")

// hear hears what a process wants, and returns the version of the protocol in which to go on.
func (g *giver) hear(c *socket.Conn, p peer) (version int, err error) {
	c.SetDeadline(time.Now().Add(g.timeout))
	hello, _, err := receiveMessage(c, 0)
	version = min(hello.Max, maxVersion)
	switch {
	case err != nil:
		return 0, fmt.Errorf("hello from %v: %w", p, err)
	case hello.Type != "hello" || version < max(hello.Min, minVersion):
		return 0, fmt.Errorf("%v says %q, and speaks versions %d to %d of the protocol; this is pid %d, with %d to %d: start a build in between first",
			p, hello.Type, hello.Min, hello.Max, os.Getpid(), minVersion, maxVersion)
	case os.Getpid() == 1:
		return 0, errors.New("with pid 1 the kernel would end all of its container: start the server below a process that stays")
	}
	return version, nil
}

// descriptors are those of all that this process listens on. The caller holds mu, and nobody but leave
// closes a listener.
func (g *giver) descriptors() ([]int, error) {
	control, _, err := identify(g.control)
	fds := []int{control, g.control.lock}
	for _, l := range g.server.listeners {
		fd, _, failed := identify(l)
		fds, err = append(fds, fd), cmp.Or(err, failed)
	}
	return fds, err
}

// leave closes these descriptors: they are another process's. The caller holds mu.
func (g *giver) leave() {
	for _, l := range g.server.listeners {
		l.Close()
	}
	g.control.Close()
	unix.Close(g.control.lock)
	g.control = nil
}

// finish tells the next process what has been counted since it was told, and so that this one ends.
func (g *giver) finish() {
	g.next.SetDeadline(time.Now().Add(10 * time.Second))
	m := message{Type: "drained", content: content{Totals: g.server.now().minus(g.told)}}
	sendMessage(g.next, m) // fails if it is gone
}

// everything is what a process has when it begins to serve.
type everything struct {
	control   *controlSocket
	listeners []*net.TCPListener
	surplus   []*net.TCPListener // not asked for any more; clients may wait in their queues
	totals    totals
	before    *socket.Conn // to the process before; nil: this is the first
}

// errAgain is that the process that listened at the control path has just ended, or given everything
// to another one.
var errAgain = errors.New("there is always another process at the control path")

// taking takes everything from the process at the other end of c.
type taking func(c *socket.Conn, addrs, path string, inherited []*net.TCPListener) (*everything, error)

// begin makes this process the next one, or the first if there is none.
func begin(addrs, path string, takeOver taking) (all *everything, err error) {
	inherited, err := activated()
	if err != nil {
		return nil, err
	}
	for range 100 {
		c, dialErr := dialControl(path)
		switch {
		case dialErr == nil:
			all, err = takeOver(c, addrs, path, inherited)
		case errors.Is(dialErr, unix.ENOENT), errors.Is(dialErr, unix.ECONNREFUSED):
			all, err = beFirst(addrs, path, inherited)
		default:
			err = dialErr
		}
		// EAGAIN: so many connect that there is no room; or somebody else has the lock, and will
		// listen in a moment.
		if !errors.Is(err, errAgain) && !errors.Is(err, unix.EAGAIN) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if errors.Is(err, unix.EAGAIN) {
		err = fmt.Errorf("%w; if it serves, and its socket has been removed, SIGUSR2 makes it make another", err)
	}
	return all, err
}

// beFirst begins without another process.
func beFirst(addrs, path string, inherited []*net.TCPListener) (*everything, error) {
	control, err := listenControl(path)
	if err != nil {
		return nil, err
	}
	listeners, _, err := arrange(addrs, inherited, nil)
	if err != nil {
		control.remove()
		return nil, err
	}
	return &everything{control: control, listeners: listeners, totals: totals{Generation: 1}}, nil
}

// ask says hello to the process at the other end of c, and returns what that answers: an offer. The
// error is errAgain if it has ended, or given everything to another process, and then c is closed.
// After any other this process ends, and the kernel closes what it has.
func ask(c *socket.Conn) (old peer, m message, fds []int, err error) {
	if old, err = peerOf(c); err != nil {
		return old, m, nil, err
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	sendMessage(c, message{Type: "hello", content: content{Min: minVersion, Max: maxVersion}}) // fails as the receipt does
	m, fds, err = receiveMessage(c, scmMaxFD)
	switch {
	case errors.Is(err, errGone):
		c.Close()
		err = errAgain
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%v does not answer: is it stopped? Then send it SIGCONT, or SIGKILL", old)
	case err != nil:
		err = fmt.Errorf("offer from %v: %w", old, err)
	case m.Type != "offer":
		err = fmt.Errorf("%v %w", old, m.gaveUp())
	}
	return old, m, fds, err
}

// adopt makes sockets of an offer's descriptors, if each is what it should be. After an error this
// process ends, and the kernel closes them.
func adopt(m message, fds []int, path string) (*everything, error) {
	if len(fds) < 2 || m.Version < minVersion || m.Version > maxVersion {
		return nil, fmt.Errorf("an offer with %d descriptors, in version %d of the protocol", len(fds), m.Version)
	}
	control, err := socket.New(fds[0], "control")
	if err != nil {
		return nil, err
	}
	if listens, err := control.GetsockoptInt(unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
		return nil, fmt.Errorf("not a control socket: SO_ACCEPTCONN is %d (%v)", listens, err)
	}
	// A lock belongs to the open file description (flock(2)): who holds it can take it again.
	if err := unix.Flock(fds[1], unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("not the lock: %w", os.NewSyscallError("flock", err))
	}
	file, _ := os.Lstat(path) // if it has been removed, SIGUSR2 makes another
	all := &everything{control: &controlSocket{control, path, file, fds[1]}, totals: m.Totals}
	for _, fd := range fds[2:] {
		l, err := adoptListener(fd)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d is no listener: %w", fd, err)
		}
		all.listeners = append(all.listeners, l)
	}
	return all, nil
}

// follow tells the process before that this one serves, and that the supervisor knows. That one may
// end now. When it does, it says what it has counted meanwhile.
func (a *everything) follow(s *server) {
	if a.before == nil {
		return
	}
	defer a.before.Close()
	a.before.SetDeadline(time.Time{})
	sendMessage(a.before, message{Type: "serving"}) // fails as the receipt does
	m, _, _ := receiveMessage(a.before, 0)          // nothing, if it was killed
	s.countAlso(m.Totals)
}
