//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Listeners that change their process, with the clients that wait in their accept queues: those
// belong to the socket, and not to the process.

// gate is what an accept loop goes through, so that it can be held up from outside. (Closing the
// listener would hold it up too, and send everybody away who waits in its queue.)
type gate struct {
	accepting sync.Mutex // held by the loop while it accepts; or by whoever has shut the gate
	isShut    bool
	deadline  func(time.Time) error
}

// pass calls accept when the gate is open.
func (g *gate) pass(accept func() error) error {
	for {
		g.accepting.Lock()
		err := accept()
		g.accepting.Unlock()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// shut returns when nothing is being accepted any more.
func (g *gate) shut() {
	if !g.isShut {
		_ = g.deadline(past) // it fails if the listener is closed, and so does accept
		g.accepting.Lock()
		g.isShut = true
	}
}

// open undoes shut.
func (g *gate) open() {
	if g.isShut {
		_ = g.deadline(time.Time{}) // as in shut
		g.isShut = false
		g.accepting.Unlock()
	}
}

// listener is a TCP listener that can be passed on. Closing it does nothing to the one that
// another process has.
type listener struct {
	*net.TCPListener
	gate
	asked string // the address as it was asked for, which may be one with port 0
}

// listenerState is a listening socket, by its cookie. The first of all is the control socket:
// instead of an address it has a file.
type listenerState struct {
	Cookie uint64 `json:"cookie"`
	Asked  string `json:"asked,omitempty"`
	Dev    uint64 `json:"dev,omitempty"`
	Ino    uint64 `json:"ino,omitempty"`
}

func newListener(l *net.TCPListener, asked string) *listener {
	return &listener{TCPListener: l, gate: gate{deadline: l.SetDeadline}, asked: asked}
}

// adoptListener makes a listener of a received socket, which it closes: package net makes a
// duplicate of its own.
func adoptListener(f *os.File, asked string) (*listener, error) {
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("adopt listener %s: %w", asked, err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("adopt listener %v: it is not one for TCP", l.Addr()), l.Close())
	}
	if asked == "" {
		asked = tcp.Addr().String()
	}
	return newListener(tcp, asked), nil
}

// isFor reports whether a listener serves an address: it was asked for in these words, or it is
// the one it has.
func (l *listener) isFor(addr string) bool { return l.asked == addr || l.Addr().String() == addr }

// choose divides listeners into those for the addresses that are asked for, and the others; and
// says for which addresses there is none. If none are asked for, it is all that there are.
func choose(asked []string, have []*listener) (wanted, others []*listener, missing []string) {
	if len(asked) == 0 {
		return have, nil, nil
	}
	others = slices.Clone(have)
	for _, addr := range asked {
		i := slices.IndexFunc(others, func(l *listener) bool { return l.isFor(addr) })
		if i < 0 {
			missing = append(missing, addr)
			continue
		}
		wanted = append(wanted, others[i])
		others = slices.Delete(others, i, i+1)
	}
	return wanted, others, missing
}

// openAll opens a listener for each address, or none.
func openAll(addrs []string) (opened []*listener, err error) {
	for _, addr := range addrs {
		l, err := listen(addr)
		if err != nil {
			return nil, errors.Join(err, closeAll(opened))
		}
		opened = append(opened, newListener(l, addr))
	}
	return opened, nil
}

// openFree opens a listener for each address that nobody has: perhaps the process before has the
// others. Port 0 is not opened, as that process may have been asked for it too.
func openFree(addrs []string) (opened []*listener, err error) {
	for _, addr := range addrs {
		if strings.HasSuffix(addr, ":0") {
			continue
		}
		l, err := listen(addr)
		switch {
		case err == nil:
			opened = append(opened, newListener(l, addr))
		case !errors.Is(err, unix.EADDRINUSE):
			return nil, errors.Join(err, closeAll(opened))
		}
	}
	return opened, nil
}

func closeAll(listeners []*listener) (err error) {
	for _, l := range listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// waiting accepts who waits in the listener's queue, and returns when that is empty. Whoever
// admits a connection owns it.
func (l *listener) waiting(admit func(*os.File) error) error {
	for {
		var client int
		err := borrow(l, func(fd int) (err error) {
			client, _, err = unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return err
		})
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("accept4", err)
		default:
			if err := admit(os.NewFile(uintptr(client), "tcp")); err != nil {
				return err
			}
		}
	}
}

// verifyListener checks that a descriptor is the listening socket that it should be: the control
// socket, or one for TCP.
func verifyListener(fd int, l listenerState, control bool) error {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_ACCEPTCONN", err)
	}
	if listening == 0 {
		return errors.New("it does not listen")
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	if isUnix := domain == unix.AF_UNIX; isUnix != control {
		return fmt.Errorf("in its place is a socket of another kind: SO_DOMAIN is %d", domain)
	}
	return verifyCookie(fd, l.Cookie)
}

// meetingPoint is the control listener, which is passed on like the others: whoever connects
// meanwhile waits in its queue, and finds the next process there.
type meetingPoint struct {
	*controlListener
	gate
}

func newMeetingPoint(l *controlListener) *meetingPoint {
	return &meetingPoint{l, gate{deadline: l.SetDeadline}}
}

// adoptMeetingPoint makes a control listener of a received socket, which it closes. file is
// what was at its path when it was bound.
func adoptMeetingPoint(f *os.File, path string, file fileID) (*meetingPoint, error) {
	fd := -1
	err := borrow(f, func(number int) (err error) {
		fd, err = unix.FcntlInt(uintptr(number), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	c, err := socket.New(fd, "control")
	if err != nil {
		return nil, err
	}
	folder, err := openFolder(filepath.Dir(path))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return newMeetingPoint(&controlListener{Conn: c, path: path, file: file, folder: folder}), nil
}

// own makes this process the one that the kernel names to those who connect from now on
// (SO_PEERCRED): the last that called listen(2).
func (m *meetingPoint) own() error { return m.Listen(backlog) }

func (m *meetingPoint) accept() (c *socket.Conn, err error) {
	err = m.pass(func() (err error) {
		c, err = m.controlListener.accept(context.Background())
		return err
	})
	return c, err
}

// leave closes this process's descriptor of it, and leaves its path to the next process.
func (m *meetingPoint) leave() (err error) {
	m.once.Do(func() { err = errors.Join(m.Conn.Close(), m.folder.Close()) })
	return err
}
