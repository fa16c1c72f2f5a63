//go:build linux

package main

// The new process's side.

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

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
var errAgain = errors.New("the process that listens there changes all the time")

// begin makes this process the next one, or the first if there is none.
func begin(addrs, path string) (all *everything, err error) {
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
	}
	return &everything{control: control, listeners: listeners, totals: totals{Generation: 1}}, err
}

// takeOver asks the process at the other end of c for everything. Only then does it open what that
// process does not have: it may be allowed less, such as port 80, than that one was.
func takeOver(c *socket.Conn, addrs, path string, inherited []*net.TCPListener) (*everything, error) {
	old, err := peerOf(c)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	sendMessage(c, message{Type: "hello", content: content{Min: minVersion, Max: maxVersion}}) // fails as the receipt does
	m, fds, err := receiveMessage(c, scmMaxFD)
	switch {
	case errors.Is(err, errGone):
		return nil, errAgain
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%v does not answer: is it stopped? Then send it SIGCONT, or SIGKILL", old)
	case err != nil:
		return nil, fmt.Errorf("offer from %v: %w", old, err)
	case m.Type != "offer":
		return nil, fmt.Errorf("%v %w", old, m.gaveUp())
	}
	all, err := adopt(m, fds, path)
	if err == nil {
		all.listeners, all.surplus, err = arrange(addrs, inherited, all.listeners)
	}
	if err != nil {
		sendMessage(c, message{Type: "refused", Reason: err.Error()})
		return nil, err
	}
	if err := commit(c); err != nil {
		return nil, fmt.Errorf("%v %w", old, err)
	}
	log.Printf("taken over from %v, generation %d", old, m.Totals.Generation)
	all.before = c
	// Whoever calls listen(2) last is the one whom the kernel names to those who connect: unix(7).
	return all, all.control.Listen(backlog)
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
	s.connections.Add(m.Totals.Connections)
	s.lines.Add(m.Totals.Lines)
}

// adopt makes of an offer's descriptors what they are, or says which is something else. It need not
// close them then, as this process ends.
func adopt(m message, fds []int, path string) (*everything, error) {
	if len(fds) < 2 {
		return nil, fmt.Errorf("an offer with %d descriptors", len(fds))
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
	m.Totals.Generation++
	all := &everything{control: &controlSocket{control, path, file, fds[1]}, totals: m.Totals}
	for _, fd := range fds[2:] {
		l, err := adoptListener(fd)
		if err != nil {
			return nil, fmt.Errorf("not a listener: %w", err)
		}
		all.listeners = append(all.listeners, l)
	}
	return all, nil
}
