//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// What travels in one offer: up to 252 sockets, and one sealed memfd with everything that user
// space holds for them. It takes the place of step 04's parcel.go and push.go.

const (
	maxSockets = maxFDs - 1
	offerFDs   = maxFDs // at most; how many there should be stands in the offer

	maxListeners = maxSockets - 1 // and the control socket
)

// The kinds of parcels, in the order in which they come.
const (
	kindListeners   = "listeners"   // serve from now on; they are yours when all is done, or I am dead
	kindConnections = "connections" // yours, whatever happens
	kindDone        = "done"        // this was all: the listeners are yours
)

// parcel is what the old process offers.
type parcel struct {
	kind    string
	sockets []syscall.Conn // in the order of the luggage
	luggage *os.File       // a sealed luggage
}

// luggage is what travels in the memfd.
type luggage struct {
	Totals    totals          `json:"totals"`
	Halted    time.Duration   `json:"halted,omitempty"` // by uptime: since when the sessions stand still
	Listeners []listenerState `json:"listeners,omitempty"`
	Cookies   []uint64        `json:"cookies,omitempty"` // of the connections' sockets
	States    map[int]state   `json:"states,omitempty"`  // of those that have one: most are idle
}

// content is the parcel in an offer.
type content struct {
	Kind    string `json:"kind,omitempty"`
	Sockets int    `json:"sockets,omitempty"` // how many come with it, besides the memfd
}

// pack makes a parcel, which the caller closes.
func pack(kind string, sockets []syscall.Conn, l luggage) (parcel, error) {
	f, err := sealValue("luggage", l)
	return parcel{kind, sockets, f}, err
}

// Close forgets the luggage. The sockets stay whose they are.
func (p parcel) Close() error { return p.luggage.Close() }

// send offers the parcel. After an error nothing has been sent.
func (p parcel) send(ctx context.Context, control *socket.Conn, offer uint64) error {
	m := message{Type: "offer", ID: offer, content: content{Kind: p.kind, Sockets: len(p.sockets)}}
	return borrowAll(append([]syscall.Conn{p.luggage}, p.sockets...), nil, func(fds []int) error {
		return sendMessage(ctx, control, m, fds...)
	})
}

// answerTime is how long an offer may stay unanswered.
func answerTime(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, timeout)
}

// borrowAll is borrow for many.
func borrowAll(conns []syscall.Conn, fds []int, f func(fds []int) error) error {
	if len(conns) == 0 {
		return f(fds)
	}
	return borrow(conns[0], func(fd int) error { return borrowAll(conns[1:], append(fds, fd), f) })
}

// stolen is what has come with an offer. Its owner closes the sockets.
type stolen struct {
	kind string
	luggage
	sockets []*os.File // in the order of the luggage
}

func (s stolen) Close() error {
	var err error
	for _, f := range s.sockets {
		if closeErr := f.Close(); !errors.Is(closeErr, os.ErrClosed) { // whoever adopts one closes it
			err = errors.Join(err, closeErr)
		}
	}
	return err
}

// unpack makes sockets of an offer's descriptors, if they are what they should be. It owns the
// descriptors: after an error they are closed.
func (t *taker) unpack(c content, fds []int) (stolen, error) {
	if err := checkCount(c, len(fds)); err != nil {
		return stolen{}, errors.Join(err, closeFDs(fds))
	}
	s := stolen{kind: c.Kind}
	file, fds := os.NewFile(uintptr(fds[0]), "luggage"), fds[1:]
	err := unsealValue(file, &s.luggage)
	if err != nil {
		err = fmt.Errorf("luggage: %w", err)
	} else {
		err = s.verify(fds)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return stolen{}, errors.Join(err, closeFDs(fds))
	}
	for _, fd := range fds {
		// As cheap as it gets: fcntl, to see that it is non-blocking, and epoll_ctl. The socket's
		// options are left alone.
		s.sockets = append(s.sockets, os.NewFile(uintptr(fd), "tcp"))
	}
	for _, f := range s.sockets {
		if err := f.SetDeadline(time.Time{}); err != nil { // epoll would not have it
			return stolen{}, errors.Join(fmt.Errorf("adopt: %w", err), s.Close())
		}
	}
	return s, nil
}

// checkCount checks that as many descriptors came as the offer says, and the luggage's.
func checkCount(c content, fds int) error {
	switch {
	case fds == 0 || fds < c.Sockets+1:
		return fmt.Errorf("%w: %d, not %d and the luggage", errMissingFDs, fds, c.Sockets)
	case fds > c.Sockets+1:
		return fmt.Errorf("%w: %d, not %d and the luggage", errSurplusFDs, fds, c.Sockets)
	}
	return nil
}

// verify checks that each descriptor is what the luggage says.
func (s stolen) verify(fds []int) error {
	if claimed := len(s.Listeners) + len(s.Cookies); claimed != len(fds) {
		return fmt.Errorf("the luggage speaks of %d sockets, and %d came", claimed, len(fds))
	}
	switch {
	case s.kind == kindListeners && len(s.Listeners) > 0 && len(s.Cookies) == 0:
		for i, l := range s.Listeners {
			if err := verifyListener(fds[i], l, i == 0); err != nil {
				return fmt.Errorf("listener %d: %w", i, err)
			}
		}
	case s.kind == kindConnections && len(s.Listeners) == 0:
		for i, cookie := range s.Cookies {
			if err := verifySession(fds[i], cookie); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
	case s.kind == kindDone && len(fds) == 0:
	default:
		return fmt.Errorf("%q with %d listeners and %d connections", s.kind, len(s.Listeners), len(s.Cookies))
	}
	return nil
}

// verifySession checks that a descriptor is the TCP socket with that cookie. It may have been reset
// by its client meanwhile: that is no reason to refuse a batch, but for the session to find out.
func verifySession(fd int, cookie uint64) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PROTOCOL", err)
	}
	if protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP {
		return fmt.Errorf("not a TCP connection: SO_PROTOCOL is %d", protocol)
	}
	return verifyCookie(fd, cookie)
}

// verifyCookie checks that a descriptor is a socket, and the very one that its sender means.
func verifyCookie(fd int, cookie uint64) error {
	is, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	if is != cookie {
		return fmt.Errorf("another socket: its cookie is %d, the luggage says %d", is, cookie)
	}
	return nil
}
