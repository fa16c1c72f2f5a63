//go:build linux

package main

// Taking everything over: the new process's side of the conversation in give.go.

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

// everything is what a process has when it begins to accept. Its sessions are served by then.
type everything struct {
	control   *controlSocket
	listeners []*net.TCPListener
	surplus   []*net.TCPListener // not asked for any more; clients may wait in their queues
	totals    totals
	before    *socket.Conn // to the process before; nil: there is none
}

// forget closes copies of what stays another process's.
func (all *everything) forget() {
	for _, l := range append(all.listeners, all.surplus...) {
		l.Close()
	}
	all.control.Close()
	unix.Close(all.control.lock)
}

// errAgain is that the process that listened at the control path has just ended, or given everything
// to another one.
var errAgain = errors.New("the process that listens there changes all the time")

// begin makes this process the next one, or the first if there is none. s serves the connections that
// it takes over; after an error it may have some of them.
func begin(s *server, addrs, path string) (all *everything, err error) {
	inherited, err := activated()
	if err != nil {
		return nil, err
	}
	for range 100 {
		c, dialErr := dialControl(path)
		switch {
		case dialErr == nil:
			t := &taker{Conn: c, server: s}
			all, err = t.takeOver(addrs, path, inherited)
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

// taker is this process's end of the conversation with the old one.
type taker struct {
	*socket.Conn
	server *server
	old    peer
	unpacker
	over    error         // why the conversation has ended
	moved   int           // connections that it has taken
	longest time.Duration // how long one of them stood still
}

// takeOver asks the old process for everything, and serves the connections as they come.
func (t *taker) takeOver(addrs, path string, inherited []*net.TCPListener) (all *everything, err error) {
	if t.old, err = peerOf(t.Conn); err != nil {
		return nil, err
	}
	begin := time.Now()
	t.SetDeadline(begin.Add(10 * time.Second))
	sendMessage(t.Conn, message{Type: "hello", content: content{Min: minVersion, Max: maxVersion}}) // fails as the receipt does
	m, fds, err := receiveMessage(t.Conn, scmMaxFD)
	switch {
	case errors.Is(err, errGone):
		return nil, errAgain
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%v does not answer: is it stopped? Then send it SIGCONT, or SIGKILL", t.old)
	case err != nil:
		return nil, fmt.Errorf("offer from %v: %w", t.old, err)
	case m.Type != "offer" || m.What != "listeners":
		return nil, fmt.Errorf("%v %w", t.old, m.gaveUp())
	}
	// Only now is opened what the old process does not have: it may be allowed more, such as port 80,
	// than this one. And before anything moves, there must be room for all.
	all, err = adopt(m, fds, path)
	if err == nil && m.Clients > cap(t.server.slots) {
		err = fmt.Errorf("no room for %d connections, but for %d: raise RLIMIT_NOFILE (ulimit -n)", m.Clients, cap(t.server.slots))
	}
	if err == nil {
		all.listeners, all.surplus, err = arrange(addrs, inherited, all.listeners)
	}
	if err != nil {
		sendMessage(t.Conn, message{Type: "refused", Reason: err.Error()})
		return nil, err
	}
	if err := commit(t.Conn); err != nil {
		return nil, fmt.Errorf("%v %w", t.old, err)
	}
	done, err := t.takeAll()
	switch {
	case err == nil:
		all.totals = done
		log.Printf("taken over from %v, generation %d: connections moved: %d, in %v; none stood still for longer than %v", t.old,
			done.Generation, t.moved, time.Since(begin).Round(time.Microsecond), t.longest.Round(time.Microsecond))
	case errors.Is(err, errGone):
		log.Printf("%v has ended before it had given everything; connections that had come: %d", t.old, t.moved)
	default:
		t.Close()
		all.forget()
		return nil, fmt.Errorf("%v %w", t.old, err)
	}
	all.totals.Generation++
	all.before = t.Conn
	// Whoever calls listen(2) last is the one whom the kernel names to those who connect: unix(7).
	return all, all.control.Listen(backlog)
}

// follow tells the process before that this one serves, and that the supervisor knows. That one may
// end now. When it does, it says what it has counted meanwhile.
func (all *everything) follow(s *server) {
	if all.before == nil {
		return
	}
	defer all.before.Close()
	all.before.SetDeadline(time.Time{})
	sendMessage(all.before, message{Type: "serving"}) // fails as the receipt does
	m, _, _ := receiveMessage(all.before, 0)          // nothing, if it was killed
	s.connections.Add(m.Totals.Connections)
	s.lines.Add(m.Totals.Lines)
}

// takeAll takes one offer after the other, until the old process is done. The error is errGone if that
// dies before, and otherwise says why it goes on without this one.
func (t *taker) takeAll() (totals, error) {
	for {
		m, fds, err := t.receive()
		switch { // a bad record is refused below, like an offer that is not true
		case err != nil && !errors.Is(err, errBadRecord):
			return totals{}, err
		case m.Type == "withdraw", m.Type == "refused":
			return totals{}, m.gaveUp()
		}
		if err == nil {
			err = t.takeNext(m, fds)
		}
		switch {
		case t.over != nil:
			return totals{}, t.over
		case err != nil:
			log.Printf("refused an offer: %v", err)
			sendMessage(t.Conn, message{Type: "refused", Reason: err.Error()}) // fails as the next receipt does
		case m.What == "done":
			return m.Totals, nil
		}
	}
}

// takeNext takes what an offer offers, and owns its descriptors. After an error it is refused, unless
// the conversation is over.
func (t *taker) takeNext(m message, fds []int) error {
	switch {
	case m.Type == "offer" && m.What == "connections":
		batch, err := t.unpack(fds)
		if err == nil {
			err = t.server.adopt(batch, t.commit)
		}
		if err == nil {
			t.moved += len(batch)
			t.longest = max(t.longest, uptime()-m.Stood)
		}
		return err
	case m.Type == "offer" && m.What == "done" && len(fds) == 0:
		return t.commit()
	}
	closeFDs(fds)
	return fmt.Errorf("unexpected %s %q with %d descriptors", m.Type, m.What, len(fds))
}

func (t *taker) commit() error {
	t.over = commit(t.Conn)
	return t.over
}

// receive waits for the next message, for as long as the old process lives. Nothing is lost by that:
// what has come is served, and the rest is not this process's.
func (t *taker) receive() (message, []int, error) {
	t.SetDeadline(time.Time{}) // none for the answer, which is small
	t.SetReadDeadline(time.Now().Add(10 * time.Second))
	m, fds, err := receiveMessage(t.Conn, scmMaxFD)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		log.Printf("%v is silent: is it stopped? Then send it SIGCONT, or SIGKILL", t.old)
		t.SetReadDeadline(time.Time{})
		m, fds, err = receiveMessage(t.Conn, scmMaxFD)
	}
	return m, fds, err
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
